/**
 * The architectures that recipes and Hugging Face folders may name. The rest of the library builds models through these
 * functions, and names no architecture itself. There is one so far; another is a file of its own and a line in each.
 */
import type { StoreOptions } from "../nn/index.js";
import type { Cost } from "./cost.js";
import type { LanguageModel } from "./language-model.js";
import { Llama } from "./llama.js";
import {
  explainHeadSize,
  fromHuggingFace,
  type LlamaConfig,
  type LlamaFields,
  llamaFieldRules,
  validateLlamaConfig,
} from "./llama-config.js";
import { llamaCost } from "./llama-cost.js";

/** The shape of a model of a known architecture. */
export type ArchitectureConfig = LlamaConfig;
/** A shape as people write it. */
export type ArchitectureFields = LlamaFields;

/** Meaning and range of each number in a shape. */
export const shapeRules = llamaFieldRules;

/** All problems of a shape, each with its path and what is allowed; empty if it can be built. */
export const validateShape = validateLlamaConfig;

/** Says a problem of a size that was left out at the fields that it follows from. */
export const explainShape = explainHeadSize;

/** The shape in a Hugging Face `config.json`. @throws CheckpointError with all problems at once */
export const shapeFromHuggingFace = fromHuggingFace;

/** A model of a known architecture without memory. */
export function describeModel(config: ArchitectureConfig): LanguageModel {
  return new Llama(config);
}

/** A model of a known architecture with memory, initialised from a seed. */
export async function createModel(
  config: ArchitectureConfig,
  options: StoreOptions = {},
): Promise<LanguageModel> {
  return describeModel(config).allocate(options);
}

/**
 * What a shape costs to train.
 * @param op the function that errors name
 * @throws ConfigError unless it can be built
 */
export function costOf(config: ArchitectureConfig, op = "costOf"): Cost {
  return llamaCost(config, op);
}

/** Number of trainable scalars. @throws ConfigError unless the shape can be built */
export function parameterCount(config: ArchitectureConfig): number {
  return costOf(config, "parameterCount").parameterCount;
}
