/** The rotary embedding in Hugging Face's `config.json`. */
import { jsonText } from "../core/check-values.js";
import type { ConfigProblem } from "../core/errors.js";
import {
  type RopeScaling,
  type RopeScalingType,
  ropeScalingRules,
  ropeScalingTypes,
  type ScalingRule,
  validateRopeScaling,
} from "./rope-scaling.js";

/** Keys of the settings in the files, by our names. */
const keys = {
  factor: "factor",
  originalContextLength: "original_max_position_embeddings",
  lowFrequencyFactor: "low_freq_factor",
  highFrequencyFactor: "high_freq_factor",
  attentionFactor: "attention_factor",
  betaFast: "beta_fast",
  betaSlow: "beta_slow",
  mscale: "mscale",
  mscaleAllDim: "mscale_all_dim",
  truncate: "truncate",
} as const satisfies Record<Exclude<keyof RopeScaling, "type">, string>;

type Name = keyof typeof keys;
const names = Object.keys(keys) as Name[];
const otherKeys = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];

/** The settings of a configuration besides those of the rotary embedding. */
interface RopeDefaults {
  contextLength: number;
  /** Base of the frequencies if no key gives it. */
  ropeTheta: number;
}

/** A rotary embedding as a shape holds it. */
interface Rope {
  ropeTheta: number;
  ropeScaling?: RopeScaling;
}

/**
 * Reads `rope_scaling` and `rope_theta` of transformers 4, or `rope_parameters` of transformers 5.
 * @param raw the keys of `config.json`
 * @param problems gets the problems, at the keys of the file
 */
export function readRope(
  raw: ReadonlyMap<string, unknown>,
  { contextLength, ropeTheta }: RopeDefaults,
  problems: ConfigProblem[],
): Rope {
  const key = isEmpty(raw.get("rope_scaling")) ? "rope_parameters" : "rope_scaling";
  const parameters = recordOf(raw.get("rope_parameters"));
  const found = raw.get(key);
  const settings = recordOf(found);
  const theta = settings.rope_theta ?? parameters.rope_theta ?? raw.get("rope_theta") ?? ropeTheta;
  const rope = { ropeTheta: theta as number };
  if (isEmpty(found)) return rope;
  const report = (path: string, message: string) => problems.push({ path, message });
  const isRecord = typeof found === "object" && !Array.isArray(found);
  const kind = isRecord ? (settings.rope_type ?? settings.type ?? "default") : found;
  const isKnown = ropeScalingTypes.includes(kind as RopeScalingType);
  if (kind !== "default" && !isKnown) {
    const allowed = ["default", ...ropeScalingTypes].join(", ");
    report(key, `${jsonText(kind)} is not supported (allowed: ${allowed})`);
    return rope;
  }
  const known: readonly string[] = [...Object.values(keys), ...otherKeys];
  for (const [name, value] of Object.entries(settings)) {
    if (value !== null && !known.includes(name)) report(`${key}.${name}`, "is not supported");
  }
  if ((settings.partial_rotary_factor ?? 1) !== 1) {
    report(
      `${key}.partial_rotary_factor`,
      `${jsonText(settings.partial_rotary_factor)} is not supported (allowed: 1)`,
    );
  }
  if (!isKnown) return rope;
  const original = raw.get("original_max_position_embeddings");
  const ropeScaling = scalingOf(kind as RopeScalingType, settings, { contextLength, original });
  for (const { path, message } of validateRopeScaling(ropeScaling, key)) {
    const name = path.slice(key.length + 1) as Name;
    report(`${key}.${keys[name] ?? name}`, message);
  }
  return { ...rope, ropeScaling };
}

/** The settings of one variant, with the values that transformers puts in place of missing ones. */
function scalingOf(
  type: RopeScalingType,
  settings: Record<string, unknown>,
  { contextLength, original }: { contextLength: number; original: unknown },
): RopeScaling {
  const fields: Partial<Record<Name, unknown>> = {};
  for (const name of names) {
    const rule: ScalingRule | undefined = name === "truncate" ? undefined : ropeScalingRules[name];
    const has = rule
      ? rule.required.includes(type) || rule.optional.includes(type)
      : type === "yarn";
    const value = settings[keys[name]] ?? undefined;
    // Zero counts as a missing number, as in transformers.
    const isMissing = value === 0 && rule?.optional.includes(type) && name !== "attentionFactor";
    if (has && value !== undefined && !isMissing) fields[name] = value;
  }
  if (type === "llama3" || type === "yarn") {
    fields.originalContextLength = original ?? fields.originalContextLength ?? contextLength;
  }
  if (type === "yarn") {
    fields.factor ??= contextLength / (fields.originalContextLength as number);
  }
  return { type, ...fields } as RopeScaling;
}

/** The settings as `rope_scaling`, which transformers 4 and 5 read. */
export function writeRopeScaling(scaling: RopeScaling): Record<string, unknown> {
  const fields = names.filter((name) => scaling[name] !== undefined);
  return {
    rope_type: scaling.type,
    ...Object.fromEntries(fields.map((name) => [keys[name], scaling[name]])),
  };
}

function isEmpty(settings: unknown): boolean {
  if (settings === undefined || settings === null) return true;
  return typeof settings === "object" && Object.keys(settings).length === 0;
}

function recordOf(value: unknown): Record<string, unknown> {
  return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};
}
