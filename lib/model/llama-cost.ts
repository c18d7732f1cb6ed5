import type { Cost, FlopsPerToken, ParameterBreakdown } from "./cost.js";
import type { Recompute } from "./language-model.js";
import { checkLlamaConfig, type LlamaConfig } from "./llama-config.js";

/**
 * The cost of training a Llama of this shape.
 * @see Kaplan et al. 2020, arXiv 2001.08361 (6N); PaLM, arXiv 2204.02311, appendix B (attention)
 * @throws ConfigError for an invalid shape
 */
export function llamaCost(config: LlamaConfig, op = "llamaCost"): Cost {
  checkLlamaConfig(op, config);
  const { vocabSize, hiddenSize, intermediateSize, layers, heads, headSize } = config;
  const parameters = llamaParameters(config);
  const headFlops = 6 * vocabSize * hiddenSize;
  const flops = (sequenceLength: number): FlopsPerToken => {
    const linear = 6 * (parameters.attention + parameters.feedForward) + headFlops;
    const causalAttention = 6 * layers * heads * headSize * sequenceLength;
    return {
      linear,
      causalAttention,
      causal: linear + causalAttention,
      fullAttention: linear + 2 * causalAttention,
    };
  };
  return {
    parameters,
    parameterCount: Object.values(parameters).reduce((sum, count) => sum + count, 0),
    flops,
    recomputedFlops: (sequenceLength, recompute) =>
      ({
        none: 0,
        ffn: 2 * layers * 3 * hiddenSize * intermediateSize,
        block: (flops(sequenceLength).causal - headFlops) / 3,
      })[recompute],
    pass: {
      blocks: layers,
      tiedHead: config.tieEmbeddings,
      headWidth: hiddenSize,
      vocabSize,
      activations: (element, recompute) => activations(config, element, recompute),
    },
  };
}

/** Number of scalars in each part of the model. */
export function llamaParameters(config: LlamaConfig): ParameterBreakdown {
  const { vocabSize, hiddenSize, intermediateSize, layers, heads, kvHeads, headSize } = config;
  const queryKeyValue = hiddenSize * (heads + 2 * kvHeads) * headSize;
  const attentionOutput = heads * headSize * hiddenSize;
  return {
    embedding: vocabSize * hiddenSize,
    attention: layers * (queryKeyValue + attentionOutput),
    feedForward: layers * 3 * hiddenSize * intermediateSize,
    norms: (2 * layers + 1) * hiddenSize,
    head: config.tieEmbeddings ? 0 : vocabSize * hiddenSize,
  };
}

function activations(config: LlamaConfig, element: 2 | 4, recompute: Recompute) {
  const { hiddenSize, intermediateSize, layers, heads, kvHeads, headSize } = config;
  const query = heads * headSize;
  const keyValue = 2 * kvHeads * headSize;
  // A block keeps: its input and the sum after attention, each also in its normed form (4 ·
  // hidden), and 1/rms of both norms; the packed q, k and v; attention's output with its softmax's
  // maximum and sum; gate, up and their product.
  const attentionPart = element * (2 * hiddenSize + 2 * query + keyValue) + 4 * (1 + 2 * heads);
  const feedForwardInput = element * 2 * hiddenSize + 4;
  const feedForwardPart = element * 3 * intermediateSize;
  const whole = attentionPart + feedForwardInput + feedForwardPart;
  const stream = element * 2 * hiddenSize; // the residual stream and the change that is added to it
  const kept = { none: whole, ffn: attentionPart + feedForwardInput, block: stream }[recompute];
  const again = { none: 0, ffn: feedForwardPart, block: whole }[recompute];
  const gradients = element * (3 * intermediateSize + 2 * hiddenSize + query + keyValue);
  // Activations outside the blocks: token ids and targets, the embedded input, the final norm and
  // its gradient.
  const ends = 8 + element * 3 * hiddenSize + 4;
  return { kept: layers * kept + ends, working: again + gradients };
}
