/** The configuration classes of transformers, one for each family of decoders. */
import type { Family } from "./llama-variations.js";

/** A family's configuration class in transformers: its values for keys that are left out. */
export interface FamilyClass {
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

export const familyClasses: { [F in Family]: FamilyClass } = {
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
