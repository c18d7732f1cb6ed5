/** The public exports of lib/model. */
export { createModel } from "./architectures.js";
export { type Batch, batchTensors, type HostBatch } from "./batch.js";
export type {
  ActivationCost,
  ActivationKind,
  BlockFlops,
  Cost,
  FlopsPerToken,
  ParameterBreakdown,
  PartFlops,
  PassCost,
  StepFlops,
  StepKind,
} from "./cost.js";
export type { FileTensor, HuggingFaceExtras, HuggingFaceFiles } from "./files.js";
export type { Fp8Fallback, Fp8Figures, Fp8Monitor } from "./fp8-monitor.js";
export {
  type Cache,
  type Context,
  LanguageModel,
  type ModelConfig,
  type PagedCache,
  type Recompute,
} from "./language-model.js";
export { Llama } from "./llama.js";
export type { Block as LlamaBlock } from "./llama-block.js";
export { type LlamaConfig, type LlamaFields, llamaConfig } from "./llama-config.js";
export { fromHuggingFace, toHuggingFace } from "./llama-hugging-face.js";
export type { Family, LlamaVariations } from "./llama-variations.js";
export { LoraModel } from "./lora.js";
export { type LoraConfig, type LoraTarget, loraTargets } from "./lora-config.js";
export {
  type AnswerScores,
  type PreferenceResult,
  preferenceLoss,
} from "./preference.js";
export {
  type PreferenceConfig,
  type PreferenceLoss,
  preferenceFigures,
  preferenceLosses,
} from "./preference-config.js";
export { presets } from "./presets.js";
export type { RopeScaling, RopeScalingType } from "./rope-scaling.js";
export { costOf, parameterCount } from "./shapes.js";
