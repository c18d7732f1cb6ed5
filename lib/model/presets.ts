import { type LlamaConfig, llamaConfig } from "./llama-config.js";

/** The shape that the SmolLM2 models share (Allal et al. 2025, arXiv 2502.02737). */
const smolLM2 = {
  vocabSize: 49_152,
  contextLength: 8192,
  ropeTheta: 100_000,
  rmsNormEps: 1e-5,
  tieEmbeddings: true,
} as const;

/** The shape that the small Llama 3.2 models share. */
const llama32 = {
  vocabSize: 128_256,
  intermediateSize: 8192,
  kvHeads: 8,
  contextLength: 131_072,
  ropeTheta: 500_000,
  ropeScaling: {
    type: "llama3",
    factor: 32,
    originalContextLength: 8192,
    lowFrequencyFactor: 1,
    highFrequencyFactor: 4,
  },
  rmsNormEps: 1e-5,
  tieEmbeddings: true,
} as const;

/** The shape that the small Qwen3 models share (arXiv 2505.09388). */
const qwen3 = {
  family: "qwen3",
  vocabSize: 151_936,
  layers: 28,
  heads: 16,
  kvHeads: 8,
  headSize: 128,
  contextLength: 40_960,
  ropeTheta: 1_000_000,
  rmsNormEps: 1e-6,
  tieEmbeddings: true,
} as const;

/**
 * Model shapes by name. The two TinyLlamas are those of the TinyLlama paper (arXiv 2401.02385). The
 * shapes of published models are those of their config.json files; `mistral-7b` is version 0.3.
 */
export const presets = {
  "tinyllama-1.1b": llamaConfig({
    vocabSize: 32_000,
    hiddenSize: 2048,
    intermediateSize: 5632,
    layers: 22,
    heads: 32,
    kvHeads: 4,
    contextLength: 2048,
    ropeTheta: 10_000,
    rmsNormEps: 1e-5,
    tieEmbeddings: false,
  }),
  "tinyllama-120m": llamaConfig({
    vocabSize: 32_000,
    hiddenSize: 768,
    intermediateSize: 2048,
    layers: 12,
    heads: 12,
    kvHeads: 1,
    contextLength: 2048,
    ropeTheta: 10_000,
    rmsNormEps: 1e-5,
    tieEmbeddings: false,
  }),
  /** Small enough to learn English on two CPU cores in minutes, with TinyLlama's proportions. */
  quickstart: llamaConfig({
    vocabSize: 4096,
    hiddenSize: 256,
    intermediateSize: 704,
    layers: 6,
    heads: 4,
    kvHeads: 2,
    contextLength: 256,
    ropeTheta: 10_000,
    rmsNormEps: 1e-5,
    tieEmbeddings: false,
  }),
  "smollm2-135m": llamaConfig({
    ...smolLM2,
    hiddenSize: 576,
    intermediateSize: 1536,
    layers: 30,
    heads: 9,
    kvHeads: 3,
  }),
  "smollm2-360m": llamaConfig({
    ...smolLM2,
    hiddenSize: 960,
    intermediateSize: 2560,
    layers: 32,
    heads: 15,
    kvHeads: 5,
  }),
  "smollm2-1.7b": llamaConfig({
    ...smolLM2,
    hiddenSize: 2048,
    intermediateSize: 8192,
    layers: 24,
    heads: 32,
    kvHeads: 32,
    ropeTheta: 130_000,
  }),
  "smollm3-3b": llamaConfig({
    family: "smollm3",
    vocabSize: 128_256,
    hiddenSize: 2048,
    intermediateSize: 11_008,
    layers: 36,
    heads: 16,
    kvHeads: 4,
    contextLength: 65_536,
    ropeTheta: 5_000_000,
    positionlessLayers: [3, 7, 11, 15, 19, 23, 27, 31, 35],
    rmsNormEps: 1e-6,
    tieEmbeddings: true,
  }),
  "llama-3.2-1b": llamaConfig({ ...llama32, hiddenSize: 2048, layers: 16, heads: 32 }),
  "llama-3.2-3b": llamaConfig({ ...llama32, hiddenSize: 3072, layers: 28, heads: 24 }),
  "qwen3-0.6b": llamaConfig({ ...qwen3, hiddenSize: 1024, intermediateSize: 3072 }),
  "qwen3-1.7b": llamaConfig({ ...qwen3, hiddenSize: 2048, intermediateSize: 6144 }),
  "mistral-7b": llamaConfig({
    family: "mistral",
    vocabSize: 32_768,
    hiddenSize: 4096,
    intermediateSize: 14_336,
    layers: 32,
    heads: 32,
    kvHeads: 8,
    contextLength: 32_768,
    ropeTheta: 1_000_000,
    rmsNormEps: 1e-5,
    tieEmbeddings: false,
  }),
} as const satisfies Record<string, LlamaConfig>;

export type PresetName = keyof typeof presets;
