/**
 * Rotary embeddings stretched to contexts longer than those of pretraining: frequencies of the
 * variants that models use, computed in double precision. This module loads no kernels.
 */
import type { ConfigProblem } from "../core/errors.js";
import { describeValue } from "./describe-value.js";

/** Variants of the rotary embedding's frequencies, by the names that config.json gives them. */
export const ropeScalingTypes = ["linear", "llama3", "yarn"] as const;
/** Ways to stretch rotary positions beyond the trained context. */
export type RopeScalingType = (typeof ropeScalingTypes)[number];

/** Settings of a stretched rotary embedding. */
export interface RopeScaling {
  type: RopeScalingType;
  /** How many times longer the context becomes. */
  factor: number;
  /** Context length of pretraining, in tokens. Required by llama3 and yarn. */
  originalContextLength?: number;
  /** llama3: waves longer than originalContextLength / lowFrequencyFactor are stretched whole. */
  lowFrequencyFactor?: number;
  /** llama3: waves shorter than originalContextLength / highFrequencyFactor stay as they are. */
  highFrequencyFactor?: number;
  /** yarn: factor of cosines and sines. Default: 0.1 · ln(factor) + 1, with mscale if both are given. */
  attentionFactor?: number;
  /** yarn: frequencies with more rotations in the original context stay as they are. Default: 32. */
  betaFast?: number;
  /** yarn: frequencies with fewer rotations in the original context are stretched whole. Default: 1. */
  betaSlow?: number;
  /** yarn: with mscaleAllDim, decides attentionFactor. */
  mscale?: number;
  mscaleAllDim?: number;
  /** yarn: whether the limits between frequencies are rounded to whole ones. Default: true. */
  truncate?: boolean;
}

/** A number of `RopeScaling`: its range, its meaning, and the variants that have it. */
export interface ScalingRule {
  min: number;
  max: number;
  integer: boolean;
  describe: string;
  /** Variants that need the number. */
  required: readonly RopeScalingType[];
  /** Variants that may have the number. */
  optional: readonly RopeScalingType[];
}

const yarn = ["yarn"] as const;

export const ropeScalingRules = {
  factor: rule(1, 1e6, "how many times longer the context becomes", ropeScalingTypes),
  originalContextLength: {
    ...rule(1, 1_048_576, "context length of pretraining; llama3 and yarn", ["llama3", "yarn"]),
    integer: true,
  },
  lowFrequencyFactor: rule(1e-6, 1e6, "llama3: limit of the waves that are stretched whole", [
    "llama3",
  ]),
  highFrequencyFactor: rule(1e-6, 1e6, "llama3: limit of the waves that stay as they are", [
    "llama3",
  ]),
  attentionFactor: rule(0, 1e3, "yarn: factor of cosines and sines", [], yarn),
  betaFast: rule(1e-6, 1e6, "yarn: rotations above which a frequency stays", [], yarn),
  betaSlow: rule(1e-6, 1e6, "yarn: rotations below which a frequency is stretched whole", [], yarn),
  mscale: rule(1e-6, 1e3, "yarn: decides attentionFactor, with mscaleAllDim", [], yarn),
  mscaleAllDim: rule(1e-6, 1e3, "yarn: decides attentionFactor, with mscale", [], yarn),
} as const satisfies Record<Exclude<keyof RopeScaling, "type" | "truncate">, ScalingRule>;

function rule(
  min: number,
  max: number,
  describe: string,
  required: readonly RopeScalingType[],
  optional: readonly RopeScalingType[] = [],
): ScalingRule {
  return { min, max, integer: false, describe, required, optional };
}

/** All problems of the settings, each with its path below `prefix`. */
export function validateRopeScaling(scaling: unknown, prefix: string): ConfigProblem[] {
  const problems: ConfigProblem[] = [];
  const report = (path: string, message: string) => problems.push({ path, message });
  if (typeof scaling !== "object" || scaling === null || Array.isArray(scaling)) {
    report(prefix, `expected an object with type and factor, got ${JSON.stringify(scaling)}`);
    return problems;
  }
  const { type, truncate, ...numbers } = scaling as Record<string, unknown>;
  if (!ropeScalingTypes.includes(type as RopeScalingType)) {
    const allowed = ropeScalingTypes.join(", ");
    report(`${prefix}.type`, `expected one of ${allowed}, got ${JSON.stringify(type) ?? "none"}`);
    return problems;
  }
  const variant = type as RopeScalingType;
  if (truncate !== undefined && (variant !== "yarn" || typeof truncate !== "boolean")) {
    report(
      `${prefix}.truncate`,
      variant === "yarn"
        ? `expected true or false, got ${truncate}`
        : `${variant} has no such field`,
    );
  }
  for (const name of new Set([...Object.keys(ropeScalingRules), ...Object.keys(numbers)])) {
    const path = `${prefix}.${name}`;
    const value = numbers[name];
    const rule = (ropeScalingRules as Partial<Record<string, ScalingRule>>)[name];
    const needed = rule?.required.includes(variant);
    if (value === undefined && !needed) continue;
    if (rule === undefined || !(needed || rule.optional.includes(variant))) {
      report(path, `${variant} has no such field`);
      continue;
    }
    const { min, max, integer } = rule;
    const isNumber = typeof value === "number" && (!integer || Number.isInteger(value));
    if (!isNumber || !(value >= min && value <= max)) {
      const kind = integer ? "an integer" : "a number";
      report(
        path,
        `expected ${kind} from ${min} to ${max}, got ${value === undefined ? "none" : describeValue(value)}`,
      );
    }
  }
  if (problems.length === 0) {
    const { lowFrequencyFactor: low = 0, highFrequencyFactor: high = 1 } = scaling as RopeScaling;
    const { betaSlow = 1, betaFast = 32 } = scaling as RopeScaling;
    if (high <= low)
      report(`${prefix}.highFrequencyFactor`, `expected more than ${low}, got ${high}`);
    if (betaFast < betaSlow) {
      report(`${prefix}.betaFast`, `expected at least betaSlow ${betaSlow}, got ${betaFast}`);
    }
  }
  return problems;
}

/** Angles per position of each pair of a head, and the factor of their cosines and sines. */
export interface RopeFrequencies {
  /** Radians per position; headSize / 2 numbers. */
  frequencies: Float64Array;
  attentionFactor: number;
}

/**
 * The frequencies of a rotary embedding: theta^(-2i / headSize), stretched.
 * @param headSize an even number
 * @param theta    base of the frequencies
 * @param scaling  valid settings
 */
export function ropeFrequencies(
  headSize: number,
  theta: number,
  scaling: RopeScaling,
): RopeFrequencies {
  const plain = Float64Array.from(
    { length: headSize / 2 },
    (_, i) => theta ** ((-2 * i) / headSize),
  );
  switch (scaling.type) {
    case "linear":
      return { frequencies: plain.map((f) => f / scaling.factor), attentionFactor: 1 };
    case "llama3":
      return { frequencies: plain.map((f) => llama3Frequency(f, scaling)), attentionFactor: 1 };
    case "yarn":
      return yarnFrequencies(plain, headSize, theta, scaling);
  }
}

/**
 * Llama 3.1's rule (Grattafiori et al. 2024, arXiv 2407.21783): short waves stay, long ones are
 * stretched, and those between are a mixture.
 */
function llama3Frequency(frequency: number, scaling: RopeScaling): number {
  const { factor, lowFrequencyFactor: low = 1, highFrequencyFactor: high = 4 } = scaling;
  // How many waves the original context holds.
  const waves = ((scaling.originalContextLength as number) * frequency) / (2 * Math.PI);
  if (waves > high) return frequency;
  if (waves < low) return frequency / factor;
  const kept = (waves - low) / (high - low);
  return (1 - kept) * (frequency / factor) + kept * frequency;
}

/** YaRN (Peng et al. 2023, arXiv 2309.00071). */
function yarnFrequencies(
  plain: Float64Array,
  headSize: number,
  theta: number,
  scaling: RopeScaling,
): RopeFrequencies {
  const { factor, betaFast = 32, betaSlow = 1, truncate = true } = scaling;
  const original = scaling.originalContextLength as number;
  // Index of the pair that turns this many times within the original context.
  const pairOf = (rotations: number): number =>
    (headSize * Math.log(original / (rotations * 2 * Math.PI))) / (2 * Math.log(theta));
  const [first, last] = [pairOf(betaFast), pairOf(betaSlow)];
  const low = Math.max(truncate ? Math.floor(first) : first, 0);
  const high = Math.min(truncate ? Math.ceil(last) : last, headSize - 1);
  const span = low === high ? 0.001 : high - low;
  const frequencies = plain.map((frequency, pair) => {
    const stretched = Math.min(1, Math.max(0, (pair - low) / span));
    return (frequency / factor) * stretched + frequency * (1 - stretched);
  });
  return { frequencies, attentionFactor: yarnAttentionFactor(scaling) };
}

function yarnAttentionFactor({
  factor,
  attentionFactor,
  mscale,
  mscaleAllDim,
}: RopeScaling): number {
  if (attentionFactor !== undefined) return attentionFactor;
  const of = (weight: number): number => (factor <= 1 ? 1 : 0.1 * weight * Math.log(factor) + 1);
  return mscale && mscaleAllDim ? of(mscale) / of(mscaleAllDim) : of(1);
}

/**
 * Cosines and sines of all angles, in the layout of `ropeTable`.
 * @param positions number of positions
 * @returns (positions, headSize / 2, 2), row by row
 */
export function ropeAngles(
  positions: number,
  { frequencies, attentionFactor }: RopeFrequencies,
): Float32Array {
  const table = new Float32Array(positions * frequencies.length * 2);
  let place = 0;
  for (let position = 0; position < positions; position++) {
    for (const frequency of frequencies) {
      table[place++] = attentionFactor * Math.cos(position * frequency);
      table[place++] = attentionFactor * Math.sin(position * frequency);
    }
  }
  return table;
}
