/** The shape of a Llama or of a relative in Hugging Face's `config.json`. */
import { boundedList } from "../core/bounded-list.js";
import { checkOptions, checkString } from "../core/check-values.js";
import { CheckpointError, type ConfigProblem } from "../core/errors.js";
import { describeValue } from "./describe-value.js";
import type { HuggingFaceExtras } from "./files.js";
import {
  checkLlamaConfig,
  explainHeadSize,
  isCount,
  type LlamaConfig,
  validateLlamaConfig,
} from "./llama-config.js";
import { familyClasses } from "./llama-family-classes.js";
import { type Raw, readLayers, writeLayers } from "./llama-layers.js";
import { type Family, families, withoutDefaults } from "./llama-variations.js";
import { readRope, writeRopeScaling } from "./rope-config.js";

/** The `config.json` of a Hugging Face folder with this shape. */
export function toHuggingFace(config: LlamaConfig, extras: HuggingFaceExtras = {}) {
  checkLlamaConfig("toHuggingFace", config);
  checkOptions("toHuggingFace", extras, ["bosTokenId", "eosTokenId", "dtype"]);
  const family = config.family ?? "llama";
  const { architecture, attentionBias, feedForwardBias } = familyClasses[family];
  return {
    architectures: [architecture],
    model_type: family as string,
    hidden_act: "silu",
    ...(attentionBias && { attention_bias: config.attentionBias ?? false }),
    ...(feedForwardBias && { mlp_bias: config.feedForwardBias ?? false }),
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
    rope_scaling: config.ropeScaling ? writeRopeScaling(config.ropeScaling) : null,
    ...writeLayers(config, family),
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
 * The shape in a Hugging Face `config.json` (already parsed), in the style of transformers 4 or 5.
 * It accepts only models that LlamaForge computes exactly.
 * @param source named in the error, e.g. the file's path
 * @throws CheckpointError with all problems at once
 */
export function fromHuggingFace(json: unknown, source = "config.json"): LlamaConfig {
  checkString("fromHuggingFace", "source", source);
  if (typeof json !== "object" || json === null || Array.isArray(json)) {
    throw new CheckpointError(`${source}: expected a JSON object, got ${describeValue(json)}`);
  }
  const raw = new Map<string, unknown>(Object.entries(json));
  const problems: ConfigProblem[] = [];
  const family = readFamily(raw, problems);
  problems.push(...unsupportedFeatures(raw, family));
  const { defaults } = familyClasses[family];
  const read = (key: string, fallback?: number): number => {
    const value = raw.get(key) ?? fallback;
    if (value === undefined) problems.push({ path: key, message: "missing" });
    return value as number;
  };
  const heads = read("num_attention_heads");
  const hiddenSize = read("hidden_size");
  // A key that is left out has the class's default; null follows from the other sizes.
  const implied = (key: "num_key_value_heads" | "head_dim", derived: number | undefined) =>
    read(key, raw.has(key) ? derived : (defaults[key] ?? derived));
  const contextLength = read("max_position_embeddings", defaults.max_position_embeddings);
  const layers = read("num_hidden_layers");
  const config = withoutDefaults<LlamaConfig>({
    vocabSize: read("vocab_size"),
    hiddenSize,
    intermediateSize: read("intermediate_size"),
    layers,
    heads,
    kvHeads: implied("num_key_value_heads", heads),
    headSize: implied(
      "head_dim",
      isCount(hiddenSize) && isCount(heads) ? hiddenSize / heads : undefined,
    ),
    contextLength,
    ...readRope(raw, { contextLength, ropeTheta: defaults.rope_theta }, problems),
    rmsNormEps: read("rms_norm_eps", 1e-6),
    tieEmbeddings: (raw.get("tie_word_embeddings") ?? defaults.tie_word_embeddings) as boolean,
    family,
    attentionBias: raw.get("attention_bias") === true,
    feedForwardBias: raw.get("mlp_bias") === true,
    ...readLayers(raw, family, layers, problems),
  });
  if (problems.length === 0) {
    const fields = raw.get("head_dim") == null ? { ...config, headSize: undefined } : config;
    problems.push(...explainHeadSize(validateLlamaConfig(config), fields).map(atKey));
  }
  if (problems.length > 0) {
    const list = boundedList(problems.map(({ path, message }) => `  ${path}: ${message}`));
    throw new CheckpointError(`${source}: not a model that LlamaForge can run\n${list}`);
  }
  return config;
}

/** The keys of the file, by the names of a shape's fields. */
const keys: Readonly<Record<string, string>> = {
  vocabSize: "vocab_size",
  hiddenSize: "hidden_size",
  intermediateSize: "intermediate_size",
  layers: "num_hidden_layers",
  heads: "num_attention_heads",
  kvHeads: "num_key_value_heads",
  headSize: "head_dim",
  contextLength: "max_position_embeddings",
  ropeTheta: "rope_theta",
  rmsNormEps: "rms_norm_eps",
  tieEmbeddings: "tie_word_embeddings",
  slidingWindow: "sliding_window",
};

/** A problem of a shape, at the key of the file and with the file's names. */
function atKey({ path, message }: ConfigProblem): ConfigProblem {
  return {
    path: keys[path] ?? path,
    message: message.replace(/\b(hiddenSize|headSize|heads)\b/g, (name) => keys[name] as string),
  };
}

function readFamily(raw: Raw, problems: ConfigProblem[]): Family {
  const kind = raw.get("model_type");
  if (families.includes(kind as Family)) return kind as Family;
  const message = raw.has("model_type")
    ? `${describeValue(kind)} is not supported (allowed: ${families.map(describeValue).join(", ")})`
    : "missing";
  problems.push({ path: "model_type", message });
  return "llama";
}

function unsupportedFeatures(raw: Raw, family: Family): ConfigProblem[] {
  const problems: ConfigProblem[] = [];
  const only = (key: string, allowed: readonly unknown[]) => {
    const value = raw.get(key);
    if (value === undefined || value === null || allowed.includes(value)) return;
    const remedy = allowed.length === 0 ? "none" : allowed.map(describeValue).join(", ");
    const message = `${describeValue(value)} is not supported (allowed: ${remedy})`;
    problems.push({ path: key, message });
  };
  const { attentionBias, feedForwardBias, window } = familyClasses[family];
  only("hidden_act", ["silu"]);
  only("attention_bias", attentionBias ? [false, true] : [false]);
  only("mlp_bias", feedForwardBias ? [false, true] : [false]);
  only("attention_dropout", [0]);
  only("partial_rotary_factor", [1]);
  only("rope_interleaved", [false]);
  only("quantization_config", []);
  if (window === "none") only("sliding_window", []);
  if (window === "by layer") only("use_sliding_window", [false, true]);
  if (family !== "smollm3") only("no_rope_layers", []);
  return problems;
}
