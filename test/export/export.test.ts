/** GGUF files and Hugging Face folders of another dtype. scripts/continue compares with llama.cpp. */
import { readFileSync } from "node:fs";
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it, test } from "vitest";
import { loadModel, saveModel } from "../../lib/checkpoint/model.js";
import { readSafetensors } from "../../lib/checkpoint/safetensors.js";
import { noGrad } from "../../lib/core/autograd.js";
import { tensor } from "../../lib/core/create.js";
import {
  ArgumentError,
  CheckpointError,
  TokenizerError,
  UsageError,
} from "../../lib/core/errors.js";
import { scope } from "../../lib/core/scope.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { exportGguf } from "../../lib/export/gguf.js";
import { ggufTypes, toBf16, toBlocks, toF16 } from "../../lib/export/gguf-blocks.js";
import { ggufTokenizer } from "../../lib/export/gguf-tokenizer.js";
import { exportHuggingFace } from "../../lib/export/hugging-face.js";
import { fromF16 } from "../../lib/export/read-model.js";
import { Llama } from "../../lib/model/llama.js";
import { type LlamaFields, llamaConfig } from "../../lib/model/llama-config.js";
import { llamaGguf } from "../../lib/model/llama-gguf.js";
import { readGguf } from "./gguf-reader.js";

const blocks = JSON.parse(
  readFileSync(new URL("./fixtures/blocks.json", import.meta.url), "utf8"),
) as Record<"f16" | "bf16" | "q8_0" | "q4_0", string> & { values: number[] };

const shape: LlamaFields = {
  vocabSize: 300,
  hiddenSize: 64,
  intermediateSize: 96,
  layers: 2,
  heads: 4,
  kvHeads: 2,
  contextLength: 64,
  ropeTheta: 10_000,
  rmsNormEps: 1e-5,
  tieEmbeddings: false,
};

/** A byte-level tokenizer of 256 bytes, two merges, and three added tokens. */
async function writeTokenizer(folder: string): Promise<void> {
  const { byteLevelAlphabet } = await import("../../lib/data/tokenizer-json.js");
  const vocab = Object.fromEntries(byteLevelAlphabet.map((character, byte) => [character, byte]));
  const byteLevel = {
    type: "ByteLevel",
    add_prefix_space: true,
    trim_offsets: true,
    use_regex: true,
  };
  const json = {
    added_tokens: ["<s>", "</s>", "<tool>"].map((content, index) => ({
      id: 258 + index,
      content,
      special: index < 2,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
    })),
    pre_tokenizer: { ...byteLevel, add_prefix_space: false },
    decoder: byteLevel,
    model: { type: "BPE", vocab: { ...vocab, ab: 256, abc: 257 }, merges: ["a b", "ab c"] },
  };
  await writeFile(join(folder, "tokenizer.json"), JSON.stringify(json));
}

let folder: string;
let source: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "llamaforge-export-"));
  source = join(folder, "model");
  const model = await Llama.create(llamaConfig(shape), { seed: 3 });
  await saveModel(source, model, { tokenizer: null, bosTokenId: 258, eosTokenId: 259 });
  model.dispose();
  await writeTokenizer(source);
  await writeFile(join(source, "chat_template.jinja"), "{{ messages[0].content }}");
  await writeFile(join(source, "generation_config.json"), '{ "eos_token_id": [259, 260] }');
});
afterAll(() => rm(folder, { recursive: true }));

describe("numbers", () => {
  const values = new Float32Array(Uint32Array.from(blocks.values).buffer);
  it.each(["f16", "bf16", "q8_0", "q4_0"] as const)(
    "of %s equal those of gguf's quantizer",
    (type) => {
      expect(Buffer.from(toBlocks(type, values)).toString("hex")).toBe(blocks[type]);
    },
  );

  it("of float16 come back from every pattern of bits, and round to the nearest, ties to even", () => {
    for (let bits = 0; bits < 65536; bits++) {
      const value = fromF16(bits);
      if (Number.isNaN(value)) expect(toF16(value) & 0x7fff).toBeGreaterThan(0x7c00);
      else expect(toF16(value)).toBe(bits);
      const next = fromF16(bits + 1);
      if (bits >= 0x7bff) continue;
      // The middle of two neighbours goes to the even one.
      expect(toF16((value + next) / 2)).toBe(bits + (bits % 2));
    }
    expect([toF16(65519), toF16(65520), toF16(-1e9)]).toEqual([0x7bff, 0x7c00, 0xfc00]);
    expect([toBf16(1.00390625), toBf16(1.01171875)]).toEqual([0x3f80, 0x3f82]);
  });
});

describe("a GGUF file", () => {
  it("holds each tensor under its name, q and k in llama.cpp's order", async () => {
    const file = join(folder, "f32.gguf");
    await exportGguf(source, file, { type: "f32" });
    const { tensors, metadata } = readGguf(file);
    const { tensors: stored } = await readSafetensors(join(source, "model.safetensors"));
    expect(Object.keys(tensors)).toHaveLength(stored.size);
    const bytesOf = async (name: string) =>
      Buffer.from(await (stored.get(name)?.readBytes() ?? []));
    expect(tensors["token_embd.weight"]?.bytes).toEqual(await bytesOf("model.embed_tokens.weight"));
    expect(tensors["output.weight"]?.bytes).toEqual(await bytesOf("lm_head.weight"));
    const layer = "model.layers.1";
    expect(tensors["blk.1.attn_v.weight"]?.bytes).toEqual(
      await bytesOf(`${layer}.self_attn.v_proj.weight`),
    );
    expect(tensors["blk.1.ffn_down.weight"]).toMatchObject({ shape: [64, 96], type: 0 });
    for (const [ours, theirs, heads] of [
      ["attn_q", "q_proj", 4],
      ["attn_k", "k_proj", 2],
    ] as const) {
      const rows = await bytesOf(`${layer}.self_attn.${theirs}.weight`);
      const width = 64 * 4;
      const order = Array.from({ length: heads }, (_, head) =>
        Array.from({ length: 16 }, (_, row) => head * 16 + (row % 2) * 8 + (row >> 1)),
      ).flat();
      const turned = order.map((row) => rows.subarray(row * width, (row + 1) * width));
      expect(tensors[`blk.1.${ours}.weight`]?.bytes).toEqual(Buffer.concat(turned));
    }
    expect(metadata).toMatchObject({
      "general.architecture": "llama",
      "general.file_type": 0,
      "llama.block_count": 2,
      "llama.attention.head_count_kv": 2,
      "llama.rope.dimension_count": 16,
      "llama.vocab_size": 300,
      "tokenizer.ggml.model": "gpt2",
      "tokenizer.ggml.pre": "gpt-2",
      "tokenizer.ggml.bos_token_id": 258,
      "tokenizer.ggml.eos_token_id": 259,
      "tokenizer.ggml.eot_token_id": 260,
      "tokenizer.ggml.merges": ["a b", "ab c"],
      "tokenizer.ggml.add_bos_token": false,
      "tokenizer.chat_template": "{{ messages[0].content }}",
    });
    const tokens = metadata["tokenizer.ggml.tokens"] as string[];
    const types = metadata["tokenizer.ggml.token_type"] as number[];
    expect(tokens).toHaveLength(300);
    expect(tokens.slice(256, 263)).toEqual([
      "ab",
      "abc",
      "<s>",
      "</s>",
      "<tool>",
      "[PAD261]",
      "[PAD262]",
    ]);
    expect(types.slice(256, 263)).toEqual([1, 1, 3, 3, 4, 5, 5]);
  });

  it.each(ggufTypes)("in %s keeps norms as they are", async (type) => {
    const file = join(folder, `${type}-norms.gguf`);
    await exportGguf(source, file, { type });
    const { tensors } = readGguf(file);
    expect(tensors["blk.0.attn_norm.weight"]?.type).toBe(0);
    const ids = { f32: 0, f16: 1, bf16: 30, q8_0: 8, q4_0: 2 };
    expect(tensors["blk.0.ffn_up.weight"]?.type).toBe(ids[type]);
    expect(tensors["token_embd.weight"]?.type).toBe(type === "q4_0" ? 8 : ids[type]);
  });

  it("is not made for what llama.cpp cannot hold, over another file, or from half a folder", async () => {
    const at = (change: object) => llamaConfig({ ...shape, ...change } as LlamaFields);
    expect(() => llamaGguf(at({ family: "qwen3", attentionBias: true }))).toThrow(
      /cannot run this model:\n {2}attentionBias: its qwen3 has no such biases/,
    );
    const smol = { family: "smollm3", positionlessLayers: [0] };
    expect(() => llamaGguf(at(smol))).toThrow(/positionlessLayers/);
    const scaling = { type: "yarn", factor: 2, originalContextLength: 32, betaFast: 16 };
    expect(() => llamaGguf(at({ ropeScaling: scaling }))).toThrow(ArgumentError);
    const window = llamaGguf(at({ family: "mistral", slidingWindow: 8 }));
    expect(window.notes[0]).toMatch(/no sliding window.*beyond 8 tokens/);
    const taken = join(folder, "taken.gguf");
    await writeFile(taken, "");
    await expect(exportGguf(source, taken)).rejects.toThrow(UsageError);
    await exportGguf(source, taken, { overwrite: true });
    expect((await readFile(taken)).length).toBeGreaterThan(1000);
    const half = join(folder, "half");
    const model = await Llama.create(llamaConfig({ ...shape, layers: 1 }));
    await saveModel(half, model, { tokenizer: null });
    model.dispose();
    const config = JSON.parse(await readFile(join(source, "config.json"), "utf8"));
    await writeFile(join(half, "config.json"), JSON.stringify(config));
    const refused = exportGguf(half, join(folder, "half.gguf"), { tokenizer: false });
    await expect(refused).rejects.toThrow(CheckpointError);
    await expect(refused).rejects.toThrow(
      /missing:\n {2}model\.layers\.1\.input_layernorm\.weight/,
    );
    expect((await readdir(folder)).filter((name) => name.includes(".tmp"))).toEqual([]);
  });

  it("names a tokenizer that llama.cpp has no form for", async () => {
    const tokenizer = await Tokenizer.load(
      new URL("../../assets/quickstart", import.meta.url).pathname,
    );
    expect(() => ggufTokenizer(tokenizer, 4096, [])).toThrow(TokenizerError);
    expect(() => ggufTokenizer(tokenizer, 4096, [])).toThrow(
      /no tokenizer of this kind.*--no-tokenizer/,
    );
  });
});

describe("a folder whose weights do not fit its config.json", () => {
  it.each([
    [{ num_key_value_heads: 4 }, "k_proj.weight: expected [64,64], got [32,64]"],
    [{ head_dim: 8 }, "q_proj.weight: expected [32,64], got [64,64]"],
    [{ num_hidden_layers: 1 }, "unexpected:\n  model.layers.1.input_layernorm.weight"],
    [{ attention_bias: true }, "missing:\n  model.layers.0.self_attn.q_proj.bias"],
    [{ vocab_size: 299 }, "embed_tokens.weight: expected [299,64], got [300,64]"],
  ])("with %j is not written in any form", async (change, message) => {
    const place = await mkdtemp(join(folder, "unfit-"));
    await cp(source, place, { recursive: true });
    const config = join(place, "config.json");
    const json = JSON.parse(await readFile(config, "utf8"));
    await writeFile(config, JSON.stringify({ ...json, ...change }));
    const out = join(place, "out");
    for (const written of [exportGguf, exportHuggingFace]) {
      const refused = written(place, out);
      await expect(refused).rejects.toThrow(CheckpointError);
      await expect(refused).rejects.toThrow(message);
    }
    expect((await readdir(place)).filter((name) => name.startsWith("out"))).toEqual([]);
  });
});

describe("a Hugging Face folder", () => {
  test("of another dtype gives the logits of its rounded weights", async () => {
    const ids = [[1, 5, 200, 17, 258, 3]];
    const logitsOf = async (path: string) => {
      const model = await loadModel(path);
      const logits = await scope(() =>
        noGrad(() => model.forward(tensor(ids, { dtype: "i32" }))).toArray(),
      );
      model.dispose();
      return [...logits];
    };
    const original = await logitsOf(source);
    for (const [dtype, within] of [
      ["float32", 0],
      ["float16", 2e-3],
      ["bfloat16", 2e-2],
    ] as const) {
      const out = join(folder, dtype);
      await exportHuggingFace(source, out, { dtype });
      const logits = await logitsOf(out);
      const worst = Math.max(...logits.map((x, i) => Math.abs(x - (original[i] as number))));
      expect(worst).toBeLessThanOrEqual(within);
      if (dtype !== "float32") expect(worst).toBeGreaterThan(0);
      expect(JSON.parse(await readFile(join(out, "config.json"), "utf8")).torch_dtype).toBe(dtype);
      expect((await readdir(out)).sort()).toEqual([
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
      ]);
    }
    await expect(exportHuggingFace(source, join(folder, "float16"))).rejects.toThrow(UsageError);
  });
});
