import type { Cost, FlopsPerToken, ParameterBreakdown } from "./cost.js";
import { llamaActivations } from "./llama-activations.js";
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
      activations: (element, recompute, { fp8 = false, lora } = {}) =>
        llamaActivations(config, recompute, { element, fp8, lora }),
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
