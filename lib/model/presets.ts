import { type LlamaConfig, llamaConfig } from "./llama-config.js";

/** Model shapes by name. The two TinyLlamas are those of the TinyLlama paper (arXiv 2401.02385). */
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
} as const satisfies Record<string, LlamaConfig>;

export type PresetName = keyof typeof presets;
