import type { LanguageModel, Recompute } from "./language-model.js";

/** Floating-point operations of training per token, forward and backward. */
export interface FlopsPerToken {
  /**
   * Matrix products with weights: 6 per weight. The head counts; the embedding's lookup does not.
   */
  linear: number;
  /**
   * Causal attention, where a token looks back at half the sequence on average: 6 · layers · width
   * · T.
   */
  causalAttention: number;
  /** The necessary operations: linear + causalAttention. */
  causal: number;
  /**
   * TinyLlama's convention, used for its published 56%: attention counted without the causal mask.
   */
  fullAttention: number;
}

/** Scalars by part; `head` is 0 with tied embeddings. */
export interface ParameterBreakdown {
  embedding: number;
  attention: number;
  feedForward: number;
  norms: number;
  head: number;
}

/** Training cost of a model: the only view of its shape that plans, benchmarks and reports have. */
export interface Cost {
  /** Scalars by part; null for a model that does not report them. */
  readonly parameters: ParameterBreakdown | null;
  /** Total number of scalars. */
  readonly parameterCount: number;
  /** Operations per token without recomputation, at a sequence length in tokens. */
  flops(sequenceLength: number): FlopsPerToken;
  /** Operations per token that recomputation repeats in backward. */
  recomputedFlops(sequenceLength: number, recompute: Recompute): number;
  /** Bytes per token and the order of a pass; null for a model that does not report them. */
  readonly pass: PassCost | null;
}

/** A pass over an embedding, equal blocks and a head. Each of these is a group of parameters. */
export interface PassCost {
  readonly blocks: number;
  /** Whether the head's weights belong to the embedding's group. */
  readonly tiedHead: boolean;
  /** Width of the head's input; `vocabSize` is the number of the head's rows. */
  readonly headWidth: number;
  readonly vocabSize: number;
  /**
   * Bytes of activations per token of a micro-batch.
   * @param element bytes of one activation
   * @param fp8 whether the blocks' products run in fp8. Default: false
   */
  activations(element: 2 | 4, recompute: Recompute, fp8?: boolean): ActivationCost;
}

/** Bytes of activations that a pass keeps. */
export interface ActivationCost {
  /** Bytes kept from forward to backward. */
  kept: number;
  /** Bytes of one block's intermediate gradients and recomputed activations. */
  working: number;
}

/**
 * The cost of a model whose only known size is its number of parameters: 6 operations per
 * parameter.
 */
export function plainCost(model: LanguageModel): Cost {
  const parameterCount = model.parameterCount();
  const linear = 6 * parameterCount;
  return {
    parameters: null,
    parameterCount,
    flops: () => ({ linear, causalAttention: 0, causal: linear, fullAttention: linear }),
    recomputedFlops: () => 0,
    pass: null,
  };
}
