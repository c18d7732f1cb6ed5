/** Settings of low-rank adapters and their names in PEFT's files. This module loads no kernels. */

/** Matrices that may have an adapter, by their names in the Hugging Face files. */
export const loraTargets = [
  "q_proj",
  "k_proj",
  "v_proj",
  "o_proj",
  "gate_proj",
  "up_proj",
  "down_proj",
] as const;
/** A matrix of a block, by the last part of its file's name. */
export type LoraTarget = (typeof loraTargets)[number];

/** Settings of low-rank adapters. */
export interface LoraConfig {
  /** Inner width of the adapters. */
  rank: number;
  /** The adapters' product is scaled by alpha / rank. */
  alpha: number;
  /** Matrices that get an adapter in every layer. */
  targets: readonly LoraTarget[];
  /** Folder of the frozen model, for PEFT. */
  base?: string;
}

/** Names of PEFT's files. */
export const adapterFiles = {
  config: "adapter_config.json",
  weights: "adapter_model.safetensors",
} as const;

/** PEFT's name of a half of an adapter. */
export function adapterName(matrix: string, part: "down" | "up"): string {
  return `base_model.model.${matrix}.lora_${part === "down" ? "A" : "B"}.weight`;
}

/** The contents of `adapter_config.json`. */
export function adapterConfig({ rank, alpha, targets, base }: LoraConfig): Record<string, unknown> {
  return {
    peft_type: "LORA",
    task_type: "CAUSAL_LM",
    base_model_name_or_path: base ?? null,
    r: rank,
    lora_alpha: alpha,
    lora_dropout: 0,
    target_modules: [...targets],
    bias: "none",
    fan_in_fan_out: false,
    modules_to_save: null,
    init_lora_weights: true,
    inference_mode: true,
  };
}

/** Number of trainable scalars of adapters on a decoder of this shape. */
export function loraParameterCount(
  { rank, targets }: LoraConfig,
  shape: {
    hiddenSize: number;
    intermediateSize: number;
    layers: number;
    heads: number;
    kvHeads: number;
    headSize: number;
  },
): number {
  const { hiddenSize: hidden, intermediateSize: ffn, layers, heads, kvHeads, headSize } = shape;
  const sizes: Record<LoraTarget, number> = {
    q_proj: hidden + heads * headSize,
    k_proj: hidden + kvHeads * headSize,
    v_proj: hidden + kvHeads * headSize,
    o_proj: heads * headSize + hidden,
    gate_proj: hidden + ffn,
    up_proj: hidden + ffn,
    down_proj: ffn + hidden,
  };
  return layers * rank * targets.reduce((sum, target) => sum + sizes[target], 0);
}
