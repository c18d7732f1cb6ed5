import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { CheckpointError, ConfigError } from "../../lib/core/errors.js";
import {
  type LlamaConfig,
  llamaConfig,
  validateLlamaConfig,
} from "../../lib/model/llama-config.js";
import { llamaParameters } from "../../lib/model/llama-cost.js";
import { fromHuggingFace, toHuggingFace } from "../../lib/model/llama-hugging-face.js";
import { presets } from "../../lib/model/presets.js";
import { parameterCount } from "../../lib/model/shapes.js";

const quickstart = presets.quickstart;

describe("presets", () => {
  it("have TinyLlama's parameter count", () => {
    const config = presets["tinyllama-1.1b"];
    expect(parameterCount(config)).toBe(1_100_048_384);
    expect(llamaParameters(config)).toEqual({
      embedding: 65_536_000,
      attention: 22 * (2048 * 2560 + 2048 * 2048),
      feedForward: 22 * 3 * 2048 * 5632,
      norms: 45 * 2048,
      head: 65_536_000,
    });
  });

  // The sizes of the published weights.
  it.each([
    ["llama-3.2-1b", 1_235_814_400],
    ["llama-3.2-3b", 3_212_749_824],
    ["qwen3-0.6b", 596_049_920],
    ["qwen3-1.7b", 1_720_574_976],
    ["smollm2-135m", 134_515_008],
    ["smollm2-360m", 361_821_120],
    ["smollm2-1.7b", 1_711_376_384],
    ["smollm3-3b", 3_075_098_624],
    ["mistral-7b", 7_248_023_552],
  ] as const)("%s has the parameters of its model: %i", (name, count) => {
    expect(parameterCount(presets[name])).toBe(count);
  });

  it("keep the quickstart at 6.3 to 7.3 million parameters", () => {
    expect(parameterCount(quickstart)).toBeGreaterThan(6.3e6);
    expect(parameterCount(quickstart)).toBeLessThan(7.3e6);
  });

  it("count a tied head once", () => {
    const tied = parameterCount({ ...quickstart, tieEmbeddings: true });
    expect(parameterCount(quickstart) - tied).toBe(4096 * 256);
  });
});

describe("validateLlamaConfig", () => {
  it("reports every field at once, with its range", () => {
    const problems = validateLlamaConfig(
      {
        ...quickstart,
        layers: 0,
        vocabSize: 1.5,
        ropeTheta: Number.NaN,
        tieEmbeddings: "no" as never,
      },
      "model.",
    );
    expect(problems.map(({ path }) => path)).toEqual([
      "model.vocabSize",
      "model.layers",
      "model.ropeTheta",
      "model.tieEmbeddings",
    ]);
    expect(problems[1]!.message).toBe("expected an integer from 1 to 1024, got 0");
  });

  it("names the KV heads that would do", () => {
    expect(
      validateLlamaConfig({ ...quickstart, heads: 32, headSize: 8, kvHeads: 5 }, "model."),
    ).toEqual([
      {
        path: "model.kvHeads",
        message: "5 does not divide model.heads 32 (allowed: 1, 2, 4, 8, 16, 32)",
      },
    ]);
  });

  it("refuses an odd head size and a head count that does not divide the width", () => {
    expect(() => llamaConfig({ ...quickstart, headSize: 33 })).toThrow(
      /headSize: expected an even number/,
    );
    const { headSize: _, ...fields } = quickstart;
    expect(() => llamaConfig({ ...fields, heads: 3, kvHeads: 1 })).toThrow(ConfigError);
    expect(() => llamaConfig({ ...fields, heads: 3, kvHeads: 1 })).toThrow(
      /heads: 3 does not divide hiddenSize 256 \(allowed: 1, 2, 4/,
    );
  });
});

describe("Hugging Face config.json", () => {
  it("round trips every preset", () => {
    for (const config of Object.values(presets)) {
      const json = JSON.parse(JSON.stringify(toHuggingFace(config, { eosTokenId: 2 })));
      expect(fromHuggingFace(json)).toEqual(config);
      expect(json.eos_token_id).toBe(2);
    }
  });

  const base = toHuggingFace(quickstart);
  it("fills in what older files leave out, as transformers does", () => {
    const { num_key_value_heads, head_dim, rope_theta, rms_norm_eps, ...old } = base;
    expect(fromHuggingFace(old)).toMatchObject({
      kvHeads: 4,
      headSize: 64,
      ropeTheta: 10_000,
      rmsNormEps: 1e-6,
    });
  });

  it("reads the rope base where transformers 5 writes it", () => {
    const { rope_theta, ...rest } = base;
    const json = { ...rest, rope_parameters: { rope_type: "default", rope_theta: 500_000 } };
    expect(fromHuggingFace(json).ropeTheta).toBe(500_000);
  });

  it.each([
    [{ attention_bias: 1 }, "attention_bias: 1 is not supported (allowed: false, true)"],
    [{ hidden_act: "gelu" }, 'hidden_act: "gelu" is not supported (allowed: "silu")'],
    [
      { rope_scaling: { type: "dynamic", factor: 2 } },
      'rope_scaling: "dynamic" is not supported (allowed: default, linear, llama3, yarn)',
    ],
    [{ rope_parameters: { rope_type: "longrope" } }, 'rope_parameters: "longrope"'],
    [{ rope_scaling: 3 }, "rope_scaling: 3 is not supported"],
    [{ rope_scaling: { rope_type: "linear" } }, "rope_scaling.factor: expected a number from 1"],
    [
      { rope_scaling: { rope_type: "llama3", factor: 8, low_freq_factor: 1 } },
      "rope_scaling.high_freq_factor: expected a number",
    ],
    [
      { rope_parameters: { rope_type: "yarn", factor: 4, mrope_section: [1] } },
      "rope_parameters.mrope_section: is not supported",
    ],
    [
      { rope_parameters: { rope_type: "yarn", factor: 4, truncate: 3 } },
      "rope_parameters.truncate: expected true or false, got 3",
    ],
    [
      { rope_parameters: { full_attention: { rope_type: "default" } } },
      "rope_parameters.full_attention: is not supported",
    ],
    [{ rope_parameters: { partial_rotary_factor: 0.5 } }, "rope_parameters.partial_rotary_factor"],
    [{ sliding_window: 16 }, "sliding_window: 16 is not supported (allowed: none)"],
    [
      { layer_types: Array(6).fill("sliding_attention") },
      "layer_types: sliding_attention is not supported without a sliding_window",
    ],
    [{ model_type: "gemma2" }, 'model_type: "gemma2" is not supported (allowed: "llama"'],
    [{ model_type: "mistral", attention_bias: true }, "attention_bias: true is not supported"],
    [{ model_type: "qwen3", mlp_bias: true }, "mlp_bias: true is not supported (allowed: false)"],
    [
      { model_type: "mistral", sliding_window: 8, layer_types: Array(6).fill("full_attention") },
      "layer_types: full_attention is not supported in mistral",
    ],
    [
      { model_type: "qwen2", layer_types: Array(6).fill("chunked_attention") },
      'layer_types: "chunked_attention" is not supported',
    ],
    [{ model_type: "qwen2", layer_types: ["full_attention"] }, "layer_types: expected a list"],
    [
      { model_type: "qwen2", use_sliding_window: true, sliding_window: -4, max_window_layers: 0 },
      "sliding_window: expected an integer from 1",
    ],
    [{ model_type: "qwen3", use_sliding_window: "yes" }, 'use_sliding_window: "yes" is not'],
    [{ model_type: "qwen3", max_window_layers: "3" }, "max_window_layers: expected an integer"],
    [{ model_type: "smollm3", no_rope_layers: [1, 0] }, "no_rope_layers: expected a list of 0"],
    [{ model_type: "smollm3", no_rope_layer_interval: 0 }, "no_rope_layer_interval: expected an"],
    [{ no_rope_layers: [1, 1, 1, 0, 1, 1] }, "no_rope_layers: [1,1,1,0,1,1] is not supported"],
    [{ model_type: undefined }, "model_type"],
    [{ quantization_config: { bits: 4 } }, "quantization_config"],
    [{ hidden_size: undefined }, "hidden_size: missing"],
    [{ vocab_size: "4096" }, 'vocab_size: expected an integer from 2 to 16777216, got "4096"'],
    [{ model_type: "qwen2", num_hidden_layers: 2 ** 53 }, "num_hidden_layers: expected an integer"],
    [{ num_hidden_layers: -1 }, "num_hidden_layers: expected an integer from 1 to 1024, got -1"],
    [{ num_key_value_heads: 3 }, "num_key_value_heads: 3 does not divide num_attention_heads 4"],
    [
      { num_attention_heads: 3, num_key_value_heads: 3, head_dim: null },
      "num_attention_heads: 3 does not divide hidden_size",
    ],
    [{ head_dim: 7 }, "head_dim: expected an even number"],
    [{ rope_scaling: { type: "linear", factor: "2" } }, 'to 1000000, got "2"'],
    [{ model_type: "mistral", sliding_window: 0 }, "sliding_window: expected an integer from 1"],
    [{ tie_word_embeddings: "yes" }, 'tie_word_embeddings: expected true or false, got "yes"'],
  ])("refuses %j", (change, message) => {
    const json = JSON.parse(JSON.stringify({ ...base, ...change }));
    expect(() => fromHuggingFace(json, "m/config.json")).toThrow(CheckpointError);
    expect(() => fromHuggingFace(json, "m/config.json")).toThrow(message);
  });

  const relatives: LlamaConfig[] = [
    { ...quickstart, attentionBias: true, feedForwardBias: true },
    { ...quickstart, ropeScaling: { type: "linear", factor: 2 } },
    {
      ...quickstart,
      ropeScaling: { type: "yarn", factor: 4, originalContextLength: 64, attentionFactor: 0.5 },
    },
    {
      ...quickstart,
      ropeScaling: {
        type: "yarn",
        factor: 4,
        originalContextLength: 64,
        mscale: 0.7,
        mscaleAllDim: 1,
        betaFast: 20,
        betaSlow: 2,
        truncate: false,
      },
    },
    { ...quickstart, family: "mistral" },
    { ...quickstart, family: "mistral", slidingWindow: 16 },
    { ...quickstart, family: "qwen2", slidingWindow: 16 },
    { ...quickstart, family: "qwen2", slidingWindow: 16, windowLayers: [0, 2, 4] },
    { ...quickstart, family: "qwen3", attentionBias: true, headSize: 32 },
    { ...quickstart, family: "smollm3", positionlessLayers: [1, 5] },
    { ...quickstart, family: "smollm3", slidingWindow: 8, windowLayers: [1], attentionBias: true },
  ];
  it.each(relatives)("round trips %j", (config) => {
    expect(fromHuggingFace(JSON.parse(JSON.stringify(toHuggingFace(config))))).toEqual(config);
  });

  it("writes no new key for a plain Llama", () => {
    expect(Object.keys(base)).toEqual(
      [
        ["architectures", "model_type", "hidden_act", "attention_bias", "mlp_bias"],
        ["attention_dropout", "vocab_size", "hidden_size", "intermediate_size"],
        ["num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"],
        ["max_position_embeddings", "rope_theta", "rope_scaling", "rms_norm_eps"],
        ["tie_word_embeddings", "bos_token_id", "eos_token_id", "initializer_range"],
        ["use_cache", "torch_dtype"],
      ].flat(),
    );
  });

  const sizes = {
    vocab_size: 128,
    hidden_size: 256,
    intermediate_size: 64,
    num_hidden_layers: 32,
    num_attention_heads: 32,
  };
  // The values of transformers' classes for keys that are left out.
  it.each([
    [{ model_type: "llama" }, { kvHeads: 32, headSize: 8, contextLength: 2048 }],
    [{ model_type: "mistral" }, { kvHeads: 8, slidingWindow: 4096, contextLength: 131_072 }],
    [{ model_type: "mistral", sliding_window: null }, { slidingWindow: undefined }],
    [{ model_type: "mistral", num_key_value_heads: null, head_dim: null }, { kvHeads: 32 }],
    [
      { model_type: "qwen2", sliding_window: 64 },
      { kvHeads: 32, slidingWindow: undefined },
    ],
    [
      { model_type: "qwen2", use_sliding_window: true },
      { slidingWindow: 4096, windowLayers: [28, 29, 30, 31] },
    ],
    [{ model_type: "qwen3" }, { headSize: 128, tieEmbeddings: false, contextLength: 32_768 }],
    [
      { model_type: "smollm3", use_sliding_window: true, sliding_window: 7 },
      {
        ropeTheta: 2e6,
        kvHeads: 4,
        tieEmbeddings: true,
        positionlessLayers: [3, 7, 11, 15, 19, 23, 27, 31],
        slidingWindow: 7,
        windowLayers: [3, 7, 11, 15, 19, 23, 27, 31],
      },
    ],
  ])("fills in %j as its class does", (json, expected) => {
    const config = fromHuggingFace({ ...sizes, ...json });
    const fields = Object.keys(expected) as (keyof LlamaConfig)[];
    expect(Object.fromEntries(fields.map((field) => [field, config[field]]))).toEqual(expected);
  });

  const llama3 = {
    factor: 8,
    low_freq_factor: 1,
    high_freq_factor: 4,
    original_max_position_embeddings: 32,
  };
  it.each([
    [{ rope_theta: 5e5, rope_scaling: { rope_type: "llama3", ...llama3 } }],
    [{ rope_theta: 5e5, rope_scaling: { type: "llama3", ...llama3 } }],
    [{ rope_parameters: { rope_type: "llama3", rope_theta: 5e5, ...llama3 } }],
    [
      {
        rope_theta: 1,
        rope_scaling: null,
        rope_parameters: { rope_type: "llama3", rope_theta: 5e5, ...llama3 },
      },
    ],
  ])("reads a scaled rotary embedding in the style of transformers 4 and 5: %j", (rope) => {
    const { rope_theta, rope_scaling, ...rest } = base;
    expect(fromHuggingFace({ ...rest, ...rope })).toEqual({
      ...quickstart,
      ropeTheta: 5e5,
      ropeScaling: {
        type: "llama3",
        factor: 8,
        lowFrequencyFactor: 1,
        highFrequencyFactor: 4,
        originalContextLength: 32,
      },
    });
  });

  it("takes YaRN's original context and factor from the other keys", () => {
    const yarn = (settings: object, more: object = {}) =>
      fromHuggingFace({ ...base, ...more, rope_scaling: { rope_type: "yarn", ...settings } })
        .ropeScaling;
    expect(yarn({ factor: 4 })).toMatchObject({ originalContextLength: 256 });
    expect(yarn({ factor: 4 }, { original_max_position_embeddings: 64 })).toMatchObject({
      originalContextLength: 64,
    });
    expect(yarn({ factor: null, original_max_position_embeddings: 32 })).toMatchObject({
      factor: 8,
    });
  });

  it("crashes on no value of any key", () => {
    const keys = [...Object.keys(base), "rope_parameters", "layer_types", "no_rope_layers"].concat([
      "sliding_window",
      "use_sliding_window",
      "max_window_layers",
      "no_rope_layer_interval",
    ]);
    const rope = fc.record(
      {
        rope_type: fc.constantFrom("yarn", "llama3", "linear", "default", 3),
        factor: fc.anything({ maxDepth: 1 }),
        original_max_position_embeddings: fc.anything({ maxDepth: 1 }),
        truncate: fc.anything({ maxDepth: 1 }),
      },
      { requiredKeys: [] },
    );
    const value = fc.oneof(fc.anything({ maxDepth: 2 }), rope, fc.integer(), fc.constant(2 ** 53));
    const changes = fc.dictionary(fc.constantFrom(...keys), value, { maxKeys: 4 });
    const family = fc.constantFrom("llama", "mistral", "qwen2", "qwen3", "smollm3");
    fc.assert(
      fc.property(family, changes, (model_type, change) => {
        try {
          toHuggingFace(fromHuggingFace({ ...base, model_type, ...change }));
        } catch (error) {
          expect(error).toBeInstanceOf(CheckpointError);
        }
      }),
      { numRuns: 1500, seed: 3 },
    );
  });

  it.each([null, 3, "x", []])("refuses %j as a whole", (json) => {
    expect(() => fromHuggingFace(json)).toThrow(/expected a JSON object/);
  });
});
