import type { Cost, FlopsPerToken, ParameterBreakdown } from "./cost.js";
import type { Recompute } from "./language-model.js";
import { checkLlamaConfig, type LlamaConfig } from "./llama-config.js";
import { llamaStepFlops, seenInLayer } from "./llama-step-flops.js";
import { hasHeadNorm, hasOutputBias, hasQkvBias } from "./llama-variations.js";

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
  const blockWeights = layers * (attentionWeights(config) + 3 * hiddenSize * intermediateSize);
  const flops = (sequenceLength: number): FlopsPerToken => {
    const linear = 6 * blockWeights + headFlops;
    const causalAttention = 6 * heads * headSize * seenTokens(config, sequenceLength);
    return {
      linear,
      causalAttention,
      causal: linear + causalAttention,
      fullAttention: linear + 12 * layers * heads * headSize * sequenceLength,
    };
  };
  return {
    parameters,
    parameterCount: Object.values(parameters).reduce((sum, count) => sum + count, 0),
    flops,
    step: (sequenceLength, kind = {}) => llamaStepFlops(config, sequenceLength, kind),
    pass: {
      blocks: layers,
      tiedHead: config.tieEmbeddings,
      headWidth: hiddenSize,
      vocabSize,
      activations: (element, recompute, fp8 = false) =>
        fp8 ? fp8Activations(config, recompute) : activations(config, element, recompute),
    },
  };
}

/** Weights of one block's attention, without biases. */
function attentionWeights({ hiddenSize, heads, kvHeads, headSize }: LlamaConfig): number {
  return hiddenSize * (heads + 2 * kvHeads) * headSize + heads * headSize * hiddenSize;
}

/**
 * Twice the number of tokens that a token attends to on average, summed over the layers: T of each
 * layer without a window.
 */
function seenTokens(config: LlamaConfig, sequenceLength: number): number {
  let seen = 0;
  for (let layer = 0; layer < config.layers; layer++) {
    seen += seenInLayer(config, layer, sequenceLength);
  }
  return seen;
}

/** Number of scalars in each part of the model. */
export function llamaParameters(config: LlamaConfig): ParameterBreakdown {
  const { vocabSize, hiddenSize, intermediateSize, layers, heads, kvHeads, headSize } = config;
  const attentionBiases =
    (hasQkvBias(config) ? (heads + 2 * kvHeads) * headSize : 0) +
    (hasOutputBias(config) ? hiddenSize : 0);
  const feedForwardBiases = config.feedForwardBias ? 2 * intermediateSize + hiddenSize : 0;
  const headNorms = hasHeadNorm(config) ? 2 * headSize : 0;
  return {
    embedding: vocabSize * hiddenSize,
    attention: layers * (attentionWeights(config) + attentionBiases),
    feedForward: layers * (3 * hiddenSize * intermediateSize + feedForwardBiases),
    norms: (2 * layers + 1) * hiddenSize + layers * headNorms,
    head: config.tieEmbeddings ? 0 : vocabSize * hiddenSize,
  };
}

function activations(config: LlamaConfig, element: 2 | 4, recompute: Recompute) {
  const { hiddenSize, intermediateSize, layers, heads, kvHeads, headSize } = config;
  const query = heads * headSize;
  const keyValue = 2 * kvHeads * headSize;
  // A block keeps: its input and the sum after attention, each also in its normed form (4 ·
  // hidden), and 1/rms of both norms; the packed q, k and v; attention's output with its softmax's
  // maximum and sum; gate, up and their product. Norms of heads keep q and k as they were before,
  // and 1/rms of each head.
  const normedHeads = hasHeadNorm(config)
    ? element * (query + keyValue / 2) + 4 * (heads + kvHeads)
    : 0;
  const attentionPart =
    element * (2 * hiddenSize + 2 * query + keyValue) + 4 * (1 + 2 * heads) + normedHeads;
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

/**
 * Activations in fp8: products keep the 8 bits of their inputs, transposed, and a recomputed
 * feed-forward part begins before its norm.
 */
function fp8Activations(config: LlamaConfig, recompute: Recompute) {
  const { hiddenSize, intermediateSize, layers, heads, kvHeads, headSize } = config;
  const query = heads * headSize;
  const keyValue = 2 * kvHeads * headSize;
  const normedHeads = hasHeadNorm(config) ? 2 * (query + keyValue / 2) + 4 * (heads + kvHeads) : 0;
  // The sum before each norm in bf16 and the normed rows in 8 bits, with 1/rms; packed q, k and v;
  // attention's output in both, with its statistics; gate and up; their product in 8 bits.
  const attentionPart =
    3 * hiddenSize + 2 * (query + keyValue) + 3 * query + 4 * (1 + 2 * heads) + normedHeads;
  const feedForwardPart = 3 * hiddenSize + 4 + 5 * intermediateSize;
  const whole = attentionPart + feedForwardPart;
  const kept = { none: whole, ffn: attentionPart + 2 * hiddenSize, block: 4 * hiddenSize };
  const again = { none: 0, ffn: feedForwardPart, block: whole };
  // A gradient is in 8 bits twice, as rows and as columns.
  const gradients = 2 * (3 * intermediateSize + 3 * hiddenSize + query + keyValue);
  const ends = 8 + 6 * hiddenSize + 4;
  return { kept: layers * kept[recompute] + ends, working: again[recompute] + gradients };
}
