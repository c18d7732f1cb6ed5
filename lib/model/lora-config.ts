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
  /**
   * Probability with which training drops an element of an adapter's input. Default: 0.
   */
  dropout?: number;
  /** Folder of the frozen model, for PEFT. */
  base?: string;
}

/** Names of PEFT's files. */
export const adapterFiles = {
  config: "adapter_config.json",
  weights: "adapter_model.safetensors",
} as const;

/** The fault of an adapter's folder where a whole model is needed. */
export function adapterAlone(folder: string): string {
  return (
    `${folder} holds an adapter, not a whole model: add it to its model first, ` +
    `\`llamaforge merge ${folder} --out FOLDER\``
  );
}

/** PEFT's name of a half of an adapter. */
export function adapterName(matrix: string, part: "down" | "up"): string {
  return `base_model.model.${matrix}.lora_${part === "down" ? "A" : "B"}.weight`;
}

/** The contents of `adapter_config.json`. */
export function adapterConfig(lora: LoraConfig): Record<string, unknown> {
  const { rank, alpha, targets, dropout = 0, base } = lora;
  return {
    peft_type: "LORA",
    task_type: "CAUSAL_LM",
    base_model_name_or_path: base ?? null,
    r: rank,
    lora_alpha: alpha,
    lora_dropout: dropout,
    target_modules: [...targets],
    bias: "none",
    fan_in_fan_out: false,
    modules_to_save: null,
    init_lora_weights: true,
    inference_mode: true,
  };
}

/** The sizes of a decoder that decide those of its adapters. */
export interface AdaptedShape {
  hiddenSize: number;
  intermediateSize: number;
  layers: number;
  heads: number;
  kvHeads: number;
  headSize: number;
}

/** Width of the input and of the output of each matrix that may have an adapter. */
function widthsOf(shape: AdaptedShape): Record<LoraTarget, [inputs: number, outputs: number]> {
  const { hiddenSize: hidden, intermediateSize: ffn, heads, kvHeads, headSize } = shape;
  return {
    q_proj: [hidden, heads * headSize],
    k_proj: [hidden, kvHeads * headSize],
    v_proj: [hidden, kvHeads * headSize],
    o_proj: [heads * headSize, hidden],
    gate_proj: [hidden, ffn],
    up_proj: [hidden, ffn],
    down_proj: [ffn, hidden],
  };
}

/** Number of trainable scalars of adapters on a block of a decoder of this shape. */
export function loraBlockParameterCount(
  { rank, targets }: Pick<LoraConfig, "rank" | "targets">,
  shape: AdaptedShape,
): number {
  const widths = widthsOf(shape);
  return rank * targets.reduce((sum, target) => sum + widths[target][0] + widths[target][1], 0);
}

/** Number of trainable scalars of adapters on a decoder of this shape. */
export function loraParameterCount(
  lora: Pick<LoraConfig, "rank" | "targets">,
  shape: AdaptedShape,
): number {
  return shape.layers * loraBlockParameterCount(lora, shape);
}

/** A packed product with adapters. */
export interface AdaptedStage {
  /** Width of the vector between the halves, which is kept for backward. */
  width: number;
  /** Weights that a token is multiplied with, both halves, as the product is computed. */
  weights: number;
  /** Those of the first half. */
  downWeights: number;
}

/**
 * The products of a block (q, k and v; output; gate and up; down) with the adapters of each; null
 * for a product without any. The second halves of packed adapters are computed as one product, in
 * which each has the width of all of them.
 */
export function adaptedStages(
  { rank, targets }: Pick<LoraConfig, "rank" | "targets">,
  shape: AdaptedShape,
): readonly (AdaptedStage | null)[] {
  const widths = widthsOf(shape);
  return packedTargets.map((packed) => {
    const width = rank * packed.filter((target) => targets.includes(target)).length;
    if (width === 0) return null;
    const downWeights = width * widths[packed[0] as LoraTarget][0];
    const outputs = packed.reduce((sum, target) => sum + widths[target][1], 0);
    return { width, downWeights, weights: downWeights + width * outputs };
  });
}

/** Matrices that are computed as one product, in the order of a block. */
const packedTargets: readonly (readonly LoraTarget[])[] = [
  ["q_proj", "k_proj", "v_proj"],
  ["o_proj"],
  ["gate_proj", "up_proj"],
  ["down_proj"],
];
