/**
 * The relatives of Llama as variations on one decoder: fields of a shape beyond those of a plain
 * Llama, and the families whose Hugging Face files can hold them. A plain Llama has none of them.
 * This module loads no kernels.
 */
import type { ConfigProblem } from "../core/errors.js";
import { describeValue } from "./describe-value.js";
import { type RopeScaling, validateRopeScaling } from "./rope-scaling.js";

/** Families of decoders, by the `model_type` of their Hugging Face configurations. */
export const families = ["llama", "mistral", "qwen2", "qwen3", "smollm3"] as const;
/** Relatives of Llama that a model's configuration may name. */
export type Family = (typeof families)[number];

/** The variations of a decoder. A field that is left out means a plain Llama's behaviour. */
export interface LlamaVariations {
  /**
   * Architecture of the Hugging Face files. Qwen2 has biases of q, k and v; Qwen3 has an RMSNorm of
   * each query and key head. Default: llama.
   */
  family?: Family;
  /** Rotary embedding stretched beyond the context of pretraining. */
  ropeScaling?: RopeScaling;
  /** Whether attention's four projections have biases. */
  attentionBias?: boolean;
  /** Whether the feed-forward layer's projections have biases. */
  feedForwardBias?: boolean;
  /** Tokens that a token attends to, itself included. */
  slidingWindow?: number;
  /** Indices of the layers with a sliding window, ascending. Default: all, if there is a window. */
  windowLayers?: readonly number[];
  /** Indices of the layers without rotary positions, ascending. */
  positionlessLayers?: readonly number[];
}

/** Families whose files can hold a variation. */
const familiesWith = {
  attentionBias: ["llama", "qwen3", "smollm3"],
  feedForwardBias: ["llama", "smollm3"],
  slidingWindow: ["mistral", "qwen2", "qwen3", "smollm3"],
  windowLayers: ["qwen2", "qwen3", "smollm3"],
  positionlessLayers: ["smollm3"],
} as const satisfies Partial<Record<keyof LlamaVariations, readonly Family[]>>;

/** Meaning of each variation, for the options of a run configuration. */
export const variationMeanings = {
  family:
    "architecture of the model's files: qwen2 has biases of q, k and v, qwen3 a norm of each head of q and k",
  ropeScaling: "rotary embedding stretched beyond the context of pretraining",
  attentionBias: `whether attention's projections have biases (${familiesWith.attentionBias.join(", ")})`,
  feedForwardBias: `whether the feed-forward layer has biases (${familiesWith.feedForwardBias.join(", ")})`,
  slidingWindow: `tokens that a token attends to, itself included (${familiesWith.slidingWindow.join(", ")})`,
  windowLayers: `indices of the layers with a sliding window (${familiesWith.windowLayers.join(", ")})`,
  positionlessLayers: `indices of the layers without rotary positions (${familiesWith.positionlessLayers.join(", ")})`,
} as const satisfies Record<keyof LlamaVariations, string>;

/** The range of a sliding window, in tokens. */
export const slidingWindowRange = { min: 1, max: 1_048_576 } as const;

const familyOf = ({ family = "llama" }: LlamaVariations): Family => family;

/** Whether q, k and v have biases. */
export const hasQkvBias = (config: LlamaVariations): boolean =>
  familyOf(config) === "qwen2" || config.attentionBias === true;

/** Whether attention's output has a bias. */
export const hasOutputBias = (config: LlamaVariations): boolean => config.attentionBias === true;

/** Whether each head of q and k is normed before the rotary embedding. */
export const hasHeadNorm = (config: LlamaVariations): boolean => familyOf(config) === "qwen3";

/** The sliding window of a layer in tokens; null for a layer that sees all tokens before it. */
export function windowOf(config: LlamaVariations, layer: number): number | null {
  const { slidingWindow, windowLayers } = config;
  if (slidingWindow === undefined) return null;
  return windowLayers === undefined || windowLayers.includes(layer) ? slidingWindow : null;
}

/** Whether a layer rotates queries and keys by their positions. */
export const rotates = (config: LlamaVariations, layer: number): boolean =>
  !config.positionlessLayers?.includes(layer);

/** Problems of a shape's variations. The other fields are valid. */
export function validateVariations(
  config: LlamaVariations & { layers: number; ropeTheta: number },
  prefix: string,
): ConfigProblem[] {
  const problems: ConfigProblem[] = [];
  const report = (field: string, message: string) =>
    problems.push({ path: prefix + field, message });
  const { family = "llama", ropeScaling, slidingWindow, layers } = config;
  if (!families.includes(family)) {
    report("family", `expected one of ${families.join(", ")}, got ${JSON.stringify(family)}`);
    return problems;
  }
  for (const field of ["attentionBias", "feedForwardBias"] as const) {
    const value: unknown = config[field];
    if (value !== undefined && typeof value !== "boolean") {
      report(field, `expected true or false, got ${JSON.stringify(value)}`);
    }
  }
  if (slidingWindow !== undefined) {
    const { min, max } = slidingWindowRange;
    if (!(Number.isInteger(slidingWindow) && slidingWindow >= min && slidingWindow <= max)) {
      report(
        "slidingWindow",
        `expected an integer from ${min} to ${max}, got ${describeValue(slidingWindow)}`,
      );
    }
  }
  for (const field of ["windowLayers", "positionlessLayers"] as const) {
    const problem = problemOfLayers(config[field], layers);
    if (problem !== null) report(field, problem);
  }
  if (config.windowLayers !== undefined && slidingWindow === undefined) {
    report("windowLayers", "expected a slidingWindow beside it");
  }
  for (const [field, allowed] of Object.entries(familiesWith)) {
    const value = config[field as keyof typeof familiesWith];
    const absent = value === undefined || value === false;
    if (absent || (allowed as readonly Family[]).includes(family)) continue;
    report(field, `the family ${family} has none (families with it: ${allowed.join(", ")})`);
  }
  if (ropeScaling !== undefined) {
    problems.push(...validateRopeScaling(ropeScaling, `${prefix}ropeScaling`));
    if (ropeScaling?.type === "yarn" && config.ropeTheta <= 1) {
      report("ropeTheta", `expected a number above 1 beside yarn, got ${config.ropeTheta}`);
    }
  }
  return problems;
}

function problemOfLayers(indices: unknown, layers: number): string | null {
  if (indices === undefined) return null;
  const expected = `ascending indices of layers from 0 to ${layers - 1}`;
  if (!Array.isArray(indices)) return `expected ${expected}, got ${JSON.stringify(indices)}`;
  const isValid = indices.every(
    (index, i) =>
      Number.isInteger(index) &&
      index >= 0 &&
      index < layers &&
      (i === 0 || index > indices[i - 1]),
  );
  return isValid ? null : `expected ${expected}, got ${indices.join(", ")}`;
}

/**
 * The shape without variations that change nothing, such as a window of no layer. Equal shapes then
 * have equal fields.
 */
export function withoutDefaults<C extends LlamaVariations & { layers: number }>(config: C): C {
  const result = { ...config };
  const { windowLayers } = config;
  if (config.family === "llama") delete result.family;
  if (config.attentionBias === false) delete result.attentionBias;
  if (config.feedForwardBias === false) delete result.feedForwardBias;
  if (config.positionlessLayers?.length === 0) delete result.positionlessLayers;
  if (windowLayers?.length === 0) delete result.slidingWindow;
  if (windowLayers?.length === 0 || windowLayers?.length === config.layers) {
    delete result.windowLayers;
  }
  for (const name of Object.keys(result) as (keyof C)[]) {
    if (result[name] === undefined) delete result[name];
  }
  return result;
}
