import { checkObject } from "../core/check-values.js";
import { ConfigError, type ConfigProblem } from "../core/errors.js";
import { describeValue } from "./describe-value.js";
import { type LlamaVariations, validateVariations, withoutDefaults } from "./llama-variations.js";

/**
 * The shape of a Llama or of a relative: everything needed to build the model, and nothing about
 * training it.
 */
export interface LlamaConfig extends LlamaVariations {
  vocabSize: number;
  hiddenSize: number;
  /** Width of the SwiGLU feed-forward layer. */
  intermediateSize: number;
  layers: number;
  /** Query heads. */
  heads: number;
  /** Key and value heads; each serves heads / kvHeads query heads. */
  kvHeads: number;
  headSize: number;
  /** Longest sequence that the model is made for. */
  contextLength: number;
  ropeTheta: number;
  rmsNormEps: number;
  /** Whether the output head is the embedding matrix. */
  tieEmbeddings: boolean;
}

/** A model's shape as people write it: `headSize` follows from hiddenSize / heads unless given. */
export type LlamaFields = Omit<LlamaConfig, "headSize"> & { headSize?: number };

export interface FieldRule {
  min: number;
  max: number;
  integer: boolean;
  describe: string;
}

/**
 * Meaning and range of each numeric field. The run configuration's schema is made from this table.
 */
export const llamaFieldRules = {
  vocabSize: integer(2, 2 ** 24, "number of token ids; must be at least the tokenizer's"),
  hiddenSize: integer(1, 65_536, "width of the residual stream"),
  intermediateSize: integer(1, 1_048_576, "width of the SwiGLU feed-forward layer"),
  layers: integer(1, 1024, "number of transformer blocks"),
  heads: integer(1, 1024, "query heads of each block"),
  kvHeads: integer(1, 1024, "key and value heads of each block; must divide heads"),
  headSize: integer(2, 256, "width of one head, even (default hiddenSize / heads)"),
  contextLength: integer(1, 1_048_576, "longest sequence the model is made for"),
  ropeTheta: real(1, 1e12, "base of the rotary position embedding"),
  rmsNormEps: real(1e-12, 0.1, "added to the mean square in RMSNorm"),
} as const satisfies Record<
  Exclude<keyof LlamaConfig, "tieEmbeddings" | keyof LlamaVariations>,
  FieldRule
>;

function integer(min: number, max: number, describe: string): FieldRule {
  return { min, max, integer: true, describe };
}

function real(min: number, max: number, describe: string): FieldRule {
  return { min, max, integer: false, describe };
}

const numericFields = Object.keys(llamaFieldRules) as (keyof typeof llamaFieldRules)[];

/**
 * All problems of a model's shape, each with its path and the allowed values; empty for a valid
 * shape.
 * @param prefix put before every path, e.g. `model.`
 */
export function validateLlamaConfig(config: LlamaConfig, prefix = ""): ConfigProblem[] {
  const problems: ConfigProblem[] = [];
  if (typeof config !== "object" || config === null) {
    return [
      { path: `${prefix}config`, message: `expected an object, got ${describeValue(config)}` },
    ];
  }
  const report = (field: keyof LlamaConfig, message: string) =>
    problems.push({ path: prefix + field, message });

  for (const field of numericFields) {
    const { min, max, integer } = llamaFieldRules[field];
    const value: unknown = config[field];
    const kind = integer ? "an integer" : "a number";
    const valid =
      typeof value === "number" && (integer ? Number.isInteger(value) : !Number.isNaN(value));
    if (!valid || value < min || value > max) {
      report(field, `expected ${kind} from ${min} to ${max}, got ${describeValue(value)}`);
    }
  }
  if (typeof config.tieEmbeddings !== "boolean") {
    report("tieEmbeddings", `expected true or false, got ${describeValue(config.tieEmbeddings)}`);
  }
  if (problems.length === 0) {
    checkHeads(config, prefix, report);
    problems.push(...validateVariations(config, prefix));
  }
  return problems;
}

function checkHeads(
  { hiddenSize, heads, kvHeads, headSize }: LlamaConfig,
  prefix: string,
  report: (field: keyof LlamaConfig, message: string) => void,
): void {
  if (heads % kvHeads !== 0) {
    const allowed = divisors(heads).join(", ");
    report("kvHeads", `${kvHeads} does not divide ${prefix}heads ${heads} (allowed: ${allowed})`);
  }
  if (headSize % 2 !== 0) {
    report(
      "headSize",
      `expected an even number, since RoPE turns pairs, got ${headSize}` +
        (headSize * heads === hiddenSize
          ? ` = ${prefix}hiddenSize ${hiddenSize} / heads ${heads}`
          : ""),
    );
  }
}

/**
 * A complete, valid model shape from its fields.
 * @throws ConfigError with all problems at once
 */
export function llamaConfig(fields: LlamaFields): LlamaConfig {
  checkObject("llamaConfig", "fields", fields);
  const {
    hiddenSize,
    heads,
    headSize = isCount(hiddenSize) && isCount(heads) ? hiddenSize / heads : Number.NaN,
  } = fields;
  const config = withoutDefaults<LlamaConfig>({ ...fields, headSize });
  const problems = validateLlamaConfig(config);
  if (problems.length > 0) throw new ConfigError("model", explainHeadSize(problems, fields));
  return config;
}

/** @throws ConfigError unless the value is a complete, valid shape, as `llamaConfig` returns it */
export function checkLlamaConfig(op: string, value: unknown): asserts value is LlamaConfig {
  const problems = validateLlamaConfig(value as LlamaConfig);
  if (problems.length > 0) throw new ConfigError(`[${op}] config`, problems);
}

/** Reports a fractional default head size as a problem of `heads`, which the user wrote. */
export function explainHeadSize(
  problems: ConfigProblem[],
  fields: Partial<LlamaFields>,
): ConfigProblem[] {
  const { hiddenSize, heads, headSize } = fields;
  const divides =
    headSize !== undefined || !isCount(hiddenSize) || !isCount(heads) || hiddenSize % heads === 0;
  if (divides) return problems;
  return problems.map((problem) =>
    problem.path.endsWith("headSize")
      ? {
          path: problem.path.replace(/headSize$/, "heads"),
          message:
            `${heads} does not divide hiddenSize ${hiddenSize} ` +
            `(allowed: ${divisors(hiddenSize).join(", ")}; or give headSize)`,
        }
      : problem,
  );
}

/** Whether a value is a whole number above 0. */
export function isCount(value: unknown): value is number {
  return Number.isInteger(value) && (value as number) > 0;
}

function divisors(n: number): number[] {
  return Array.from({ length: n }, (_, i) => i + 1).filter((i) => n % i === 0);
}
