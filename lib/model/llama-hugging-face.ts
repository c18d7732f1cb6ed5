/** The shape of a Llama or of a relative in Hugging Face's `config.json`. */
import { boundedList } from "../core/bounded-list.js";
import { checkOptions, checkString } from "../core/check-values.js";
import { CheckpointError, type ConfigProblem } from "../core/errors.js";
import type { HuggingFaceExtras } from "./files.js";
import {
  checkLlamaConfig,
  describeValue,
  isCount,
  type LlamaConfig,
  llamaFieldRules,
  validateLlamaConfig,
} from "./llama-config.js";
import { type Family, families, rotates, windowOf, withoutDefaults } from "./llama-variations.js";
import { readRope, writeRopeScaling } from "./rope-config.js";

/** What a family's configuration class in transformers assumes about keys that are left out. */
interface FamilyClass {
  architecture: string;
  defaults: {
    num_key_value_heads?: number;
    head_dim?: number;
    max_position_embeddings: number;
    rope_theta: number;
    tie_word_embeddings: boolean;
    sliding_window?: number;
  };
  /** Keys that the class has. Elsewhere they are errors unless they are false. */
  attentionBias: boolean;
  feedForwardBias: boolean;
  /** How layers get sliding windows: none, all of them, or each its own way. */
  window: "none" | "all" | "by layer";
}

const familyClasses: { [F in Family]: FamilyClass } = {
  llama: {
    architecture: "LlamaForCausalLM",
    defaults: { max_position_embeddings: 2048, rope_theta: 1e4, tie_word_embeddings: false },
    attentionBias: true,
    feedForwardBias: true,
    window: "none",
  },
  mistral: {
    architecture: "MistralForCausalLM",
    defaults: {
      num_key_value_heads: 8,
      max_position_embeddings: 131_072,
      rope_theta: 1e4,
      tie_word_embeddings: false,
      sliding_window: 4096,
    },
    attentionBias: false,
    feedForwardBias: false,
    window: "all",
  },
  qwen2: {
    architecture: "Qwen2ForCausalLM",
    defaults: {
      num_key_value_heads: 32,
      max_position_embeddings: 32_768,
      rope_theta: 1e4,
      tie_word_embeddings: false,
      sliding_window: 4096,
    },
    attentionBias: false,
    feedForwardBias: false,
    window: "by layer",
  },
  qwen3: {
    architecture: "Qwen3ForCausalLM",
    defaults: {
      num_key_value_heads: 32,
      head_dim: 128,
      max_position_embeddings: 32_768,
      rope_theta: 1e4,
      tie_word_embeddings: false,
      sliding_window: 4096,
    },
    attentionBias: true,
    feedForwardBias: false,
    window: "by layer",
  },
  smollm3: {
    architecture: "SmolLM3ForCausalLM",
    defaults: {
      num_key_value_heads: 4,
      max_position_embeddings: 32_768,
      rope_theta: 2e6,
      tie_word_embeddings: true,
    },
    attentionBias: true,
    feedForwardBias: true,
    window: "by layer",
  },
};

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

/** The keys that say how layers differ: windows, and layers without positions. */
function writeLayers(config: LlamaConfig, family: Family): Record<string, unknown> {
  const { slidingWindow } = config;
  const { window } = familyClasses[family];
  if (window === "none") return {};
  if (window === "all") return { sliding_window: slidingWindow ?? null };
  const layers = Array.from({ length: config.layers }, (_, layer) => layer);
  const windowed = layers.map((layer) => windowOf(config, layer) !== null);
  const keys = {
    use_sliding_window: slidingWindow !== undefined,
    sliding_window: slidingWindow ?? null,
    layer_types: windowed.map((has) => (has ? "sliding_attention" : "full_attention")),
  };
  if (family === "smollm3") {
    return {
      ...keys,
      no_rope_layers: layers.map((layer) => (rotates(config, layer) ? 1 : 0)),
      // The class's default is an id of a vocabulary of 128,256.
      pad_token_id: null,
    };
  }
  // Readers that do not know layer_types give a window to all layers from this one on.
  const first = windowed.includes(true) ? windowed.lastIndexOf(false) + 1 : config.layers;
  return { ...keys, max_window_layers: first };
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
  if (problems.length === 0) problems.push(...validateLlamaConfig(config));
  if (problems.length > 0) {
    const list = boundedList(problems.map(({ path, message }) => `  ${path}: ${message}`));
    throw new CheckpointError(`${source}: not a model that LlamaForge can run\n${list}`);
  }
  return config;
}

type Raw = ReadonlyMap<string, unknown>;

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

type Layers = Pick<LlamaConfig, "slidingWindow" | "windowLayers" | "positionlessLayers">;

/** Windows and positions of each layer, by the rules of the family's class. */
function readLayers(raw: Raw, family: Family, count: number, problems: ConfigProblem[]): Layers {
  if (!isCount(count) || count > llamaFieldRules.layers.max) return {}; // an error of its own
  const { window, defaults } = familyClasses[family];
  const layers = Array.from({ length: count }, (_, layer) => layer);
  const positionlessLayers =
    family === "smollm3" ? readPositionless(raw, layers, problems) : undefined;
  const size = raw.has("sliding_window") ? raw.get("sliding_window") : defaults.sliding_window;
  const used =
    window === "all" || (window === "by layer" && raw.get("use_sliding_window") === true);
  const slidingWindow = used ? ((size ?? undefined) as number | undefined) : undefined;
  const first = raw.get("max_window_layers") ?? 28;
  if (window === "by layer" && !(Number.isInteger(first) && (first as number) >= 0)) {
    const message = `expected an integer from 0, got ${describeValue(first)}`;
    problems.push({ path: "max_window_layers", message });
  }
  const has = (layer: number): boolean => {
    if (slidingWindow === undefined || window === "none") return false;
    if (window === "all") return true;
    if (family === "smollm3") return positionlessLayers?.includes(layer) === true;
    return layer >= (first as number);
  };
  const types = readTypes(raw, layers, problems) ?? layers.map(has);
  const windowLayers = layers.filter((layer) => types[layer]);
  const refuse = (message: string) => problems.push({ path: "layer_types", message });
  if (windowLayers.length > 0 && slidingWindow === undefined) {
    refuse("sliding_attention is not supported without a sliding_window that the model uses");
  }
  if (window === "all" && slidingWindow !== undefined && windowLayers.length < count) {
    refuse(`full_attention is not supported in ${family}, whose layers all have sliding_window`);
  }
  return {
    ...(slidingWindow !== undefined && { slidingWindow, windowLayers }),
    ...(positionlessLayers && { positionlessLayers }),
  };
}

/** Whether each layer has a sliding window, as `layer_types` says; null if it says nothing. */
function readTypes(
  raw: Raw,
  layers: readonly number[],
  problems: ConfigProblem[],
): boolean[] | null {
  const types = raw.get("layer_types") ?? null;
  if (types === null) return null;
  if (!Array.isArray(types) || types.length !== layers.length) {
    const message = `expected a list with one type for each of ${layers.length} layers, got ${describeValue(types)}`;
    problems.push({ path: "layer_types", message });
    return null;
  }
  const known = ["full_attention", "sliding_attention"];
  const other = types.find((type) => !known.includes(type));
  if (other !== undefined) {
    const message = `${describeValue(other)} is not supported (allowed: ${known.join(", ")})`;
    problems.push({ path: "layer_types", message });
  }
  return types.map((type) => type === "sliding_attention");
}

/** The layers whose entry in `no_rope_layers` is 0; without the list, every fourth. */
function readPositionless(
  raw: Raw,
  layers: readonly number[],
  problems: ConfigProblem[],
): number[] {
  const list = raw.get("no_rope_layers") ?? null;
  const interval = raw.get("no_rope_layer_interval") ?? 4;
  if (list === null) {
    if (isCount(interval)) return layers.filter((layer) => (layer + 1) % interval === 0);
    const message = `expected an integer above 0, got ${describeValue(interval)}`;
    problems.push({ path: "no_rope_layer_interval", message });
    return [];
  }
  const isValid =
    Array.isArray(list) && list.length >= layers.length && list.every((n) => n === 0 || n === 1);
  if (isValid) return layers.filter((layer) => list[layer] === 0);
  const message = `expected a list of 0 and 1 for each of ${layers.length} layers, got ${describeValue(list)}`;
  problems.push({ path: "no_rope_layers", message });
  return [];
}
