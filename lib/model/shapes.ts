/**
 * Shapes of the architectures that recipes and Hugging Face folders may name: their fields, checks
 * and cost. This module loads no kernels, so a recipe can be checked without the native addon.
 * There is one architecture so far, Llama's decoder with its variations. Another one needs a file of
 * its own, and a line in each function here and in architectures.ts.
 */
import type { Cost } from "./cost.js";
import {
  explainHeadSize,
  type LlamaConfig,
  type LlamaFields,
  llamaFieldRules,
  validateLlamaConfig,
} from "./llama-config.js";
import { llamaCost } from "./llama-cost.js";
import { fp8Problems } from "./llama-fp8.js";
import { type GgufLayout, llamaGguf } from "./llama-gguf.js";
import { fromHuggingFace } from "./llama-hugging-face.js";
import {
  families,
  slidingWindowRange,
  variationMeanings,
  withoutDefaults,
} from "./llama-variations.js";
import { ropeScalingRules, ropeScalingTypes } from "./rope-scaling.js";

/** The shape of a model of a known architecture. */
export type ArchitectureConfig = LlamaConfig;
/** A shape as people write it: derived sizes may be left out. */
export type ArchitectureFields = LlamaFields;

/** Meaning and range of each number in a shape. */
export const shapeRules = llamaFieldRules;

/** Variations of a shape: their meaning, and the values that they may have. */
export const shapeVariations = {
  meanings: variationMeanings,
  families,
  ropeScalingTypes,
  ropeScalingRules,
  slidingWindowRange,
} as const;

/** The shape without fields that change nothing. Equal shapes then have equal fields. */
export const canonicalShape = (config: ArchitectureConfig): ArchitectureConfig =>
  withoutDefaults(config);

/** All problems of a shape, each with its path and the allowed values; empty for a valid shape. */
export const validateShape = validateLlamaConfig;

/** Reasons why a valid shape cannot train in fp8, each with its path. */
export const shapeProblemsOfFp8 = fp8Problems;

/** Reports a problem of an omitted size at the fields that it is derived from. */
export const explainShape = explainHeadSize;

/** The shape in a Hugging Face `config.json`. @throws CheckpointError with all problems at once */
export const shapeFromHuggingFace = fromHuggingFace;

export type { GgufLayout };
/** A model's form in GGUF. @throws ArgumentError naming the fields that llama.cpp cannot hold */
export const ggufLayout: (config: ArchitectureConfig) => GgufLayout = llamaGguf;

/** The cost of training a model of this shape. @throws ConfigError unless it can be built */
export function costOf(config: ArchitectureConfig): Cost {
  return costFor("costOf", config);
}

/** Does the work of `costOf` for another function, whose name its errors give. */
export function costFor(op: string, config: ArchitectureConfig): Cost {
  return llamaCost(config, op);
}

/** Number of trainable scalars. @throws ConfigError for an invalid shape */
export function parameterCount(config: ArchitectureConfig): number {
  return costFor("parameterCount", config).parameterCount;
}
