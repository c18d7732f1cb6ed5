import type { LanguageModel, Recompute } from "./language-model.js";

/** Floating-point operations of training on one token, forward and backward. */
export interface FlopsPerToken {
  /** Matrix products with weights: 6 per weight; the head counts, the embedding's lookup does not. */
  linear: number;
  /** Attention where each token looks back at half the sequence on average: 6 · layers · width · T. */
  causalAttention: number;
  /** Operations that are needed: linear + causalAttention. */
  causal: number;
  /** The convention of TinyLlama's published 56%: attention as if nothing were masked. */
  fullAttention: number;
}

/** Scalars by part; `head` is 0 where the embedding is the head. */
export interface ParameterBreakdown {
  embedding: number;
  attention: number;
  feedForward: number;
  norms: number;
  head: number;
}

/** What a model costs to train: all that plans, benchmarks and reports know of its shape. */
export interface Cost {
  /** Scalars by part; null for a model that does not say. */
  readonly parameters: ParameterBreakdown | null;
  /** Scalars in all. */
  readonly parameterCount: number;
  /** Operations a token, with nothing recomputed, at a sequence length in tokens. */
  flops(sequenceLength: number): FlopsPerToken;
  /** Operations of a token that backward spends a second time. */
  recomputedFlops(sequenceLength: number, recompute: Recompute): number;
  /** Bytes a token and the order of a pass; null for a model that does not say. */
  readonly pass: PassCost | null;
}

/** A pass over equal blocks between an embedding and a head, each a group of parameters. */
export interface PassCost {
  readonly blocks: number;
  /** Whether the head's weights are in the embedding's group. */
  readonly tiedHead: boolean;
  /** Width of the head's input, and its rows. */
  readonly headWidth: number;
  readonly vocabSize: number;
  /**
   * Bytes of a micro-batch's activations, a token.
   * @param element bytes of one activation
   */
  activations(element: 2 | 4, recompute: Recompute): ActivationCost;
}

export interface ActivationCost {
  /** Kept from forward to backward. */
  kept: number;
  /** One block's intermediate gradients, and what is computed again for it. */
  working: number;
}

/** The cost of a model of which only the number of parameters is known: 6 operations a parameter. */
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
