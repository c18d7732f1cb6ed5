/**
 * A Llama's or a relative's form in GGUF, the file format of llama.cpp: names of architecture and
 * tensors, settings, and the order of rows. This module loads no kernels.
 */
import { ArgumentError, type ConfigProblem } from "../core/errors.js";
import type { LlamaConfig } from "./llama-config.js";
import type { Family } from "./llama-variations.js";
import { type RopeScaling, ropeFrequencies } from "./rope-scaling.js";

/** A setting of a GGUF file. Whole numbers and others are different types there. */
export type GgufSetting =
  | { type: "u32"; value: number }
  | { type: "f32"; value: number }
  | { type: "string"; value: string };

/** A model's form in GGUF. */
export interface GgufLayout {
  architecture: string;
  /** Settings by their names below the architecture's, such as `context_length`. */
  settings: Record<string, GgufSetting>;
  /** The tensor that a tensor of the Hugging Face files becomes; null for one that is left out. */
  tensorOf(name: string): GgufTensorRule | null;
  /** Tensors that follow from the configuration. */
  extras: { name: string; values: Float32Array }[];
  /** Differences between the model and its form that the user should know. */
  notes: string[];
}

/** How a tensor is written. */
export interface GgufTensorRule {
  name: string;
  /**
   * Heads whose rows change their order: llama.cpp rotates neighbours of a head where the Hugging
   * Face files rotate its halves.
   */
  interleavedHeads?: number;
}

/** Architectures of llama.cpp, by families; those that rotate neighbours within a head. */
const architectures: Record<Family, { name: string; interleaved: boolean }> = {
  llama: { name: "llama", interleaved: true },
  mistral: { name: "llama", interleaved: true },
  qwen2: { name: "qwen2", interleaved: false },
  qwen3: { name: "qwen3", interleaved: false },
  smollm3: { name: "smollm3", interleaved: true },
};

const outside: Record<string, string> = {
  "model.embed_tokens.weight": "token_embd.weight",
  "model.norm.weight": "output_norm.weight",
  "lm_head.weight": "output.weight",
};

const inBlock: Record<string, string> = {
  input_layernorm: "attn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "self_attn.q_norm": "attn_q_norm",
  "self_attn.k_norm": "attn_k_norm",
  post_attention_layernorm: "ffn_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
};

const u32 = (value: number): GgufSetting => ({ type: "u32", value });
const f32 = (value: number): GgufSetting => ({ type: "f32", value });

/**
 * The form of a model in GGUF.
 * @throws ArgumentError naming the fields that llama.cpp's architecture has no room for
 */
export function llamaGguf(config: LlamaConfig): GgufLayout {
  const { family = "llama", heads, kvHeads, headSize, ropeScaling, slidingWindow } = config;
  const problems = unsupported(config, family);
  if (problems.length > 0) {
    const list = problems.map(({ path, message }) => `  ${path}: ${message}`).join("\n");
    throw new ArgumentError(`[export] llama.cpp cannot run this model:\n${list}`);
  }
  const { name: architecture, interleaved } = architectures[family];
  const settings: Record<string, GgufSetting> = {
    context_length: u32(config.contextLength),
    embedding_length: u32(config.hiddenSize),
    block_count: u32(config.layers),
    feed_forward_length: u32(config.intermediateSize),
    "attention.head_count": u32(heads),
    "attention.head_count_kv": u32(kvHeads),
    "attention.key_length": u32(headSize),
    "attention.value_length": u32(headSize),
    "attention.layer_norm_rms_epsilon": f32(config.rmsNormEps),
    "rope.dimension_count": u32(headSize),
    "rope.freq_base": f32(config.ropeTheta),
    vocab_size: u32(config.vocabSize),
    ...(ropeScaling && ropeSettings(ropeScaling)),
  };
  const notes: string[] = [];
  if (slidingWindow !== undefined && slidingWindow < config.contextLength) {
    notes.push(
      `llama.cpp has no sliding window for ${architecture}: texts beyond ${slidingWindow} tokens go on otherwise there`,
    );
  }
  return {
    architecture,
    settings,
    notes,
    extras: ropeScaling?.type === "llama3" ? [llama3Factors(config, ropeScaling)] : [],
    tensorOf: (name) => {
      if (Object.hasOwn(outside, name)) {
        const tied = name === "lm_head.weight" && config.tieEmbeddings;
        return tied ? null : { name: outside[name] as string };
      }
      const [, layer, part, kind] = /^model\.layers\.(\d+)\.(.+)\.(weight|bias)$/.exec(name) ?? [];
      const own = part === undefined ? undefined : inBlock[part];
      if (own === undefined) return null;
      const turned = { attn_q: heads, attn_k: kvHeads }[own];
      return {
        name: `blk.${layer}.${own}.${kind}`,
        ...(interleaved && turned !== undefined && { interleavedHeads: turned }),
      };
    },
  };
}

function unsupported(config: LlamaConfig, family: Family): ConfigProblem[] {
  const problems: ConfigProblem[] = [];
  const { layers, positionlessLayers = [], ropeScaling } = config;
  for (const field of ["attentionBias", "feedForwardBias"] as const) {
    if (config[field] && (family === "qwen3" || family === "smollm3")) {
      problems.push({ path: field, message: `its ${family} has no such biases` });
    }
  }
  if (family === "smollm3") {
    // llama.cpp knows SmolLM3's own rule alone.
    const every4 = Array.from({ length: layers }, (_, i) => i).filter((i) => (i + 1) % 4 === 0);
    if (JSON.stringify(positionlessLayers) !== JSON.stringify(every4)) {
      const message = "its smollm3 has no positions in every fourth layer, and in these alone";
      problems.push({ path: "positionlessLayers", message });
    }
  }
  if (ropeScaling?.type === "yarn") {
    const { betaFast = 32, betaSlow = 1, truncate = true } = ropeScaling;
    if (betaFast !== 32 || betaSlow !== 1 || !truncate) {
      const message = "of yarn it knows betaFast 32, betaSlow 1 and whole limits alone";
      problems.push({ path: "ropeScaling", message });
    }
  }
  return problems;
}

function ropeSettings(scaling: RopeScaling): Record<string, GgufSetting> {
  const { type, factor, originalContextLength } = scaling;
  // Llama 3's rule has a tensor of factors instead.
  if (type === "llama3") return {};
  const settings: Record<string, GgufSetting> = {
    "rope.scaling.type": { type: "string", value: type },
    "rope.scaling.factor": f32(factor),
  };
  if (type === "linear") return settings;
  // llama.cpp multiplies this factor by that of the standard rule.
  const { attentionFactor } = ropeFrequencies(2, 10_000, scaling);
  const standard = 0.1 * Math.log(factor) + 1;
  return {
    ...settings,
    "rope.scaling.original_context_length": u32(originalContextLength as number),
    "rope.scaling.attn_factor": f32(attentionFactor / standard),
  };
}

/** How many times slower each pair of a head turns. */
function llama3Factors({ headSize, ropeTheta }: LlamaConfig, scaling: RopeScaling) {
  const { frequencies } = ropeFrequencies(headSize, ropeTheta, scaling);
  const values = Float32Array.from(
    frequencies,
    (frequency, pair) => ropeTheta ** ((-2 * pair) / headSize) / frequency,
  );
  return { name: "rope_freqs.weight", values };
}
