import type { LanguageModel, Recompute } from "./language-model.js";
import type { LoraConfig } from "./lora-config.js";

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

/** Choices of a recipe that decide the products of a training step. */
export interface StepKind {
  /** Adapters, which alone are trained. Default: the whole model is. */
  lora?: Pick<LoraConfig, "rank" | "targets">;
  /**
   * Whether pairs of answers are judged beside a reference, which computes forward alone. Default:
   * false.
   */
  preferences?: boolean;
  /** Default: none. */
  recompute?: Recompute;
  /** How attention counts: the tokens that a token sees, or all of the text. Default: causal. */
  attention?: "causal" | "full";
}

/** Operations per token of a part of a pass. */
export interface PartFlops {
  /** Products with weights and their gradients, adapters included. */
  linear: number;
  attention: number;
}

/** Operations per token of a block in a step. */
export interface BlockFlops {
  forward: PartFlops;
  /** Without what is recomputed. */
  backward: PartFlops;
  /** Operations that backward repeats. */
  again: PartFlops;
}

/** Operations per token of a training step, in the parts and the order in which it computes. */
export interface StepFlops {
  /** The whole forward pass of a reference; 0 without one. */
  reference: PartFlops;
  blocks: readonly BlockFlops[];
  head: {
    forward: number;
    /** Without what is computed again. */
    backward: number;
    /** Logits that backward computes again. */
    again: number;
  };
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
  /** Operations per token of a training step on texts of a length in tokens, by part. */
  step(sequenceLength: number, kind?: StepKind): StepFlops;
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
   * @param kind   what else decides it
   */
  activations(element: 2 | 4, recompute: Recompute, kind?: ActivationKind): ActivationCost;
}

/** Choices of a recipe that decide the activations of a pass. */
export interface ActivationKind {
  /** Whether the blocks' products run in fp8. Default: false. */
  fp8?: boolean;
  /** Adapters, which alone are trained. Default: the whole model is. */
  lora?: Pick<LoraConfig, "rank" | "targets">;
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
    step: (_, { preferences = false } = {}) => ({
      reference: products(preferences ? linear / 3 : 0),
      blocks: [
        { forward: products(linear / 3), backward: products((2 * linear) / 3), again: products(0) },
      ],
      head: { forward: 0, backward: 0, again: 0 },
    }),
    pass: null,
  };
}

/** A part without attention. */
const products = (linear: number): PartFlops => ({ linear, attention: 0 });
