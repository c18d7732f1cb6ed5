/**
 * Shapes of the architectures that recipes and Hugging Face folders may name: their fields, their checks, their cost. It
 * loads no kernels, so that a recipe is checked where the addon is not. There is one architecture so far; another is a file
 * of its own, and a line in each function here and in architectures.ts.
 */
import type { Cost } from "./cost.js";
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

/** The cost of training a model of this shape. @throws ConfigError unless it can be built */
export function costOf(config: ArchitectureConfig): Cost {
  return costFor("costOf", config);
}

/** Does the work of `costOf` for another function, whose name its errors give. */
export function costFor(op: string, config: ArchitectureConfig): Cost {
  return llamaCost(config, op);
}

/** Number of trainable scalars. @throws ConfigError unless the shape can be built */
export function parameterCount(config: ArchitectureConfig): number {
  return costFor("parameterCount", config).parameterCount;
}
