/**
 * Models of the architectures that recipes and Hugging Face folders may name (shapes.ts). The rest
 * of the library builds models through these functions and names no architecture itself.
 */
import type { ParameterGroupSpec, StoreOptions } from "../nn/index.js";
import type { LanguageModel } from "./language-model.js";
import { Llama } from "./llama.js";
import { LoraModel } from "./lora.js";
import type { LoraConfig } from "./lora-config.js";
import type { ArchitectureConfig } from "./shapes.js";

/** A model of a known architecture without memory. */
export function describeModel(config: ArchitectureConfig): LanguageModel {
  return new Llama(config);
}

/** The groups of parameters of adapters on a model of a known architecture. */
export function adapterGroups(config: ArchitectureConfig, lora: LoraConfig): ParameterGroupSpec[] {
  return new LoraModel(describeModel(config), lora).parameterGroups();
}

/** A model of a known architecture with memory, initialised from a seed. */
export async function createModel(
  config: ArchitectureConfig,
  options: StoreOptions = {},
): Promise<LanguageModel> {
  return describeModel(config).allocate(options);
}
