import type { Parameter } from "../nn/parameter.js";
import type { LanguageModel } from "./language-model.js";

/** A tensor in a model's files: a whole parameter, or consecutive rows of one. */
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

/** What `config.json` says beyond the model's shape. */
export interface HuggingFaceExtras {
  bosTokenId?: number | null;
  eosTokenId?: number | null;
  dtype?: "float32" | "bfloat16";
}

/** How a model is written to and read from a Hugging Face folder. */
export interface HuggingFaceFiles {
  /** All weights, in the order of the files. */
  readonly tensors: readonly FileTensor[];
  /** The contents of `config.json`. */
  config(extras?: HuggingFaceExtras): Record<string, unknown>;
  /** A second copy of a weight that some programs write, such as a tied head: it is passed over. */
  isCopy(name: string): boolean;
  /** A buffer that other programs store though it follows from the configuration: it is passed over. */
  isDerived(name: string, tensor: { readonly shape: readonly number[] }): boolean;
}

/** Files of a model of one's own: parameters under their dotted names, and the configuration as it is. */
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
    isCopy: () => false,
    isDerived: () => false,
  };
}
