import type { Parameter } from "../nn/parameter.js";
import type { LanguageModel } from "./language-model.js";

/** A tensor in a model's files: a whole parameter, or consecutive rows of a parameter. */
export interface FileTensor {
  /** E.g. `model.layers.0.self_attn.q_proj.weight`. */
  readonly name: string;
  readonly shape: readonly number[];
  /** Dotted name of the parameter that holds it. */
  readonly parameterName: string;
  readonly parameter: Parameter;
  /** First element within the parameter. */
  readonly offset: number;
}

/** Fields of `config.json` besides the model's shape. */
export interface HuggingFaceExtras {
  bosTokenId?: number | null;
  eosTokenId?: number | null;
  dtype?: "float32" | "bfloat16";
}

/** The mapping between a model and a Hugging Face folder. */
export interface HuggingFaceFiles {
  /** Names of the files; by default `config.json` and `model.safetensors`. */
  readonly names?: { readonly config: string; readonly weights: string };
  /** All weights, in the order of the files. */
  readonly tensors: readonly FileTensor[];
  /** The contents of `config.json`. */
  config(extras?: HuggingFaceExtras): Record<string, unknown>;
  /**
   * The weight that a tensor is a second copy of, as a tied head is of the embedding; null for
   * other tensors.
   */
  originalOf(name: string): string | null;
  /** Tells whether a tensor is a buffer that follows from the configuration. Loading skips it. */
  isDerived(name: string, tensor: { readonly shape: readonly number[] }): boolean;
}

/**
 * Files of a custom model: parameters under their dotted names, and the configuration unchanged.
 */
export function plainFiles(model: LanguageModel): HuggingFaceFiles {
  return {
    tensors: [...model.namedParameters()].map(([name, parameter]) => ({
      name,
      shape: parameter.shape,
      parameterName: name,
      parameter,
      offset: 0,
    })),
    config: ({ bosTokenId = null, eosTokenId = null, dtype = "float32" } = {}) => ({
      architectures: [model.constructor.name],
      ...model.config,
      bos_token_id: bosTokenId,
      eos_token_id: eosTokenId,
      torch_dtype: dtype,
    }),
    originalOf: () => null,
    isDerived: () => false,
  };
}
