import { boundedList } from "../core/bounded-list.js";
import { checkObject, checkOptions, checkString, jsonText } from "../core/check-values.js";
import { CheckpointError, ConfigError, type ConfigProblem } from "../core/errors.js";
import type { HuggingFaceExtras } from "./files.js";

/** The shape of a Llama: everything needed to build the model, and nothing about training it. */
export interface LlamaConfig {
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
} as const satisfies Record<Exclude<keyof LlamaConfig, "tieEmbeddings">, FieldRule>;

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
  if (problems.length === 0) checkHeads(config, prefix, report);
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
  const config: LlamaConfig = { ...fields, headSize };
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

function isCount(value: unknown): value is number {
  return Number.isInteger(value) && (value as number) > 0;
}

function divisors(n: number): number[] {
  return Array.from({ length: n }, (_, i) => i + 1).filter((i) => n % i === 0);
}

function describeValue(value: unknown): string {
  return typeof value === "number" ? String(value) : jsonText(value);
}

/** The `config.json` of a Hugging Face LlamaForCausalLM folder with this shape. */
export function toHuggingFace(config: LlamaConfig, extras: HuggingFaceExtras = {}) {
  checkLlamaConfig("toHuggingFace", config);
  checkOptions("toHuggingFace", extras, ["bosTokenId", "eosTokenId", "dtype"]);
  return {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    hidden_act: "silu",
    attention_bias: false,
    mlp_bias: false,
    attention_dropout: 0,
    vocab_size: config.vocabSize,
    hidden_size: config.hiddenSize,
    intermediate_size: config.intermediateSize,
    num_hidden_layers: config.layers,
    num_attention_heads: config.heads,
    num_key_value_heads: config.kvHeads,
    head_dim: config.headSize,
    max_position_embeddings: config.contextLength,
    rope_theta: config.ropeTheta,
    rope_scaling: null,
    rms_norm_eps: config.rmsNormEps,
    tie_word_embeddings: config.tieEmbeddings,
    bos_token_id: extras.bosTokenId ?? null,
    eos_token_id: extras.eosTokenId ?? null,
    initializer_range: 0.02,
    use_cache: true,
    torch_dtype: extras.dtype ?? "float32",
  };
}

/**
 * The shape in a Hugging Face `config.json` (already parsed). It accepts only models that
 * LlamaForge computes exactly: a plain Llama without biases, with the default rotary embedding.
 * @param source named in the error, e.g. the file's path
 * @throws CheckpointError with all problems at once
 */
export function fromHuggingFace(json: unknown, source = "config.json"): LlamaConfig {
  checkString("fromHuggingFace", "source", source);
  if (typeof json !== "object" || json === null || Array.isArray(json)) {
    throw new CheckpointError(`${source}: expected a JSON object, got ${describeValue(json)}`);
  }
  const raw = new Map<string, unknown>(Object.entries(json));
  const problems = unsupportedFeatures(raw);
  const read = (key: string, fallback?: number): number => {
    const value = raw.get(key) ?? fallback;
    if (value === undefined) problems.push({ path: key, message: "missing" });
    return value as number;
  };
  const heads = read("num_attention_heads");
  const hiddenSize = read("hidden_size");
  const config: LlamaConfig = {
    vocabSize: read("vocab_size"),
    hiddenSize,
    intermediateSize: read("intermediate_size"),
    layers: read("num_hidden_layers"),
    heads,
    kvHeads: read("num_key_value_heads", heads),
    headSize: read(
      "head_dim",
      isCount(hiddenSize) && isCount(heads) ? hiddenSize / heads : undefined,
    ),
    contextLength: read("max_position_embeddings", 2048),
    ropeTheta: ropeTheta(raw),
    rmsNormEps: read("rms_norm_eps", 1e-6),
    tieEmbeddings: (raw.get("tie_word_embeddings") ?? false) as boolean,
  };
  if (problems.length === 0) problems.push(...validateLlamaConfig(config));
  if (problems.length > 0) {
    const list = boundedList(problems.map(({ path, message }) => `  ${path}: ${message}`));
    throw new CheckpointError(`${source}: not a model that LlamaForge can run\n${list}`);
  }
  return config;
}

function unsupportedFeatures(raw: ReadonlyMap<string, unknown>): ConfigProblem[] {
  const problems: ConfigProblem[] = [];
  const only = (key: string, allowed: readonly unknown[]) => {
    const value = raw.get(key);
    if (value === undefined || value === null || allowed.includes(value)) return;
    const remedy = allowed.length === 0 ? "none" : allowed.map(describeValue).join(", ");
    const message = `${describeValue(value)} is not supported (allowed: ${remedy})`;
    problems.push({ path: key, message });
  };
  if (!raw.has("model_type")) problems.push({ path: "model_type", message: "missing" });
  only("model_type", ["llama"]);
  only("hidden_act", ["silu"]);
  only("attention_bias", [false]);
  only("mlp_bias", [false]);
  only("attention_dropout", [0]);
  only("partial_rotary_factor", [1]);
  for (const key of ["quantization_config", "sliding_window"]) only(key, []);
  for (const key of ["rope_scaling", "rope_parameters"]) {
    const kind = ropeKind(raw.get(key));
    if (kind !== null && kind !== "default") {
      problems.push({
        path: key,
        message: `${describeValue(kind)} is not supported (allowed: default)`,
      });
    }
  }
  return problems;
}

/** The variant of a rotary embedding's settings; `null` if there are none. */
function ropeKind(settings: unknown): unknown {
  if (settings === undefined || settings === null) return null;
  if (typeof settings !== "object") return settings;
  const { rope_type, type } = settings as { rope_type?: unknown; type?: unknown };
  return rope_type ?? type ?? "default";
}

/** The base of the rotary embedding. transformers 5 moved it into `rope_parameters`. */
function ropeTheta(raw: ReadonlyMap<string, unknown>): number {
  const parameters = raw.get("rope_parameters") as { rope_theta?: unknown } | null | undefined;
  return (parameters?.rope_theta ?? raw.get("rope_theta") ?? 10_000) as number;
}
