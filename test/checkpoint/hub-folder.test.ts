// Folders of other programs: a hub cache made of links, and buffers beside the weights. Also the
// files that saveModel writes for those programs.
import { cp, mkdir, mkdtemp, readdir, readFile, rename, rm, symlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { loadModel, type SaveModelOptions, saveModel } from "../../lib/checkpoint/model.js";
import {
  readSafetensors,
  type TensorSource,
  writeSafetensors,
} from "../../lib/checkpoint/safetensors.js";
import { tensor } from "../../lib/core/create.js";
import { ArgumentError, CheckpointError, TokenizerError } from "../../lib/core/errors.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { exportGguf } from "../../lib/export/gguf.js";
import { exportHuggingFace } from "../../lib/export/hugging-face.js";
import type { LanguageModel } from "../../lib/model/language-model.js";
import { Llama } from "../../lib/model/llama.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { buildLibrary } from "../cli/build.js";
import { llamaforge } from "../cli/run.js";
import { quickstart } from "../data/support.js";
import { tinyModel } from "../support/tiny-run.js";

const shape = { ...tinyModel, ropeTheta: 10_000, rmsNormEps: 1e-5, tieEmbeddings: false };
let folder: string;
let tokenizer: Tokenizer;
let model: Llama;
beforeAll(async () => {
  buildLibrary();
  folder = await mkdtemp(join(tmpdir(), "llamaforge-hub-"));
  tokenizer = await Tokenizer.load(quickstart);
  model = await Llama.create(llamaConfig(shape), { seed: 3 });
});

afterAll(() => rm(folder, { recursive: true, force: true }));

const ids = [[1, 2, 3, 4]];
const logits = async (of: LanguageModel) => [
  ...(await of.forward(tensor(ids, { dtype: "i32" })).toArray()),
];

/**
 * Moves a folder's files to `blobs/` and links to them from `snapshots/ABC/`, as the hub's client
 * does.
 */
async function hubCache(name: string): Promise<string> {
  const cache = join(folder, `${name}-cache`);
  const snapshot = join(cache, "snapshots", "ABC");
  await mkdir(snapshot, { recursive: true });
  await mkdir(join(cache, "blobs"));
  for (const [index, file] of (await readdir(join(folder, name))).entries()) {
    const blob = `${index}`.repeat(40);
    await rename(join(folder, name, file), join(cache, "blobs", blob));
    await symlink(`../../blobs/${blob}`, join(snapshot, file));
  }
  return snapshot;
}

test.each([
  ["one file", {}],
  ["shards", { shardBytes: 100_000 }],
])("a hub cache of links, %s: weights, configuration and tokenizer", async (kind, options) => {
  const name = kind.replace(" ", "-");
  await saveModel(join(folder, name), model, { tokenizer, ...options });
  const snapshot = await hubCache(name);
  expect((await readdir(snapshot)).includes("model.safetensors.index.json")).toBe(
    kind === "shards",
  );
  expect(await logits(await loadModel(snapshot))).toEqual(await logits(model));
  expect((await Tokenizer.load(snapshot)).sha256).toBe(tokenizer.sha256);
  const said = await llamaforge(["generate", snapshot, "The law", "--max-tokens", "2"]);
  expect(said.code, said.stderr).toBe(0);
  expect(said.stdout).toContain("The law");

  // The error names a link that leads nowhere.
  const weights = (await readdir(snapshot)).find((file) => file.endsWith(".safetensors")) as string;
  await rm(join(snapshot, weights));
  await symlink("../../blobs/gone", join(snapshot, weights));
  await expect(loadModel(snapshot)).rejects.toThrow(new RegExp(`${weights}.*no such file`, "s"));
});

test("shards that an index names and that are not there are named, all of them", async () => {
  const place = join(folder, "absent");
  await saveModel(place, model, { tokenizer: null, shardBytes: 100_000 });
  const shards = (await readdir(place)).filter((file) => file.startsWith("model-"));
  for (const shard of shards.slice(1, 3)) await rm(join(place, shard));
  await expect(loadModel(place)).rejects.toThrow(
    `model.safetensors.index.json names files that are not beside it:\n  ${shards[1]}: no such file\n` +
      `  ${shards[2]}: no such file\nDownload or copy them again`,
  );
});

test("a relative's shards give its weights back", async () => {
  const config = llamaConfig({
    ...shape,
    family: "qwen3",
    attentionBias: true,
    ropeScaling: { type: "yarn", factor: 4, originalContextLength: 8 },
  });
  const relative = await Llama.create(config, { seed: 9 });
  const place = join(folder, "relative");
  await saveModel(place, relative, { tokenizer: null, shardBytes: 10_000 });
  expect((await readdir(place)).length).toBeGreaterThan(3);
  const again = await loadModel(place);
  expect(again.config).toEqual(config);
  expect(await logits(again)).toEqual(await logits(relative));
});

test.each(["pytorch_model.bin", "pytorch_model.bin.index.json"])(
  "a folder with %s alone is told how to convert it",
  async (file) => {
    const place = join(folder, `pickled-${file}`);
    await saveModel(place, model, { tokenizer: null });
    await rename(join(place, "model.safetensors"), join(place, file));
    await expect(loadModel(place)).rejects.toThrow(CheckpointError);
    await expect(loadModel(place)).rejects.toThrow(
      `${file} alone, a Python pickle: expected model`,
    );
    await expect(loadModel(place)).rejects.toThrow("save_pretrained(sys.argv[2])");
  },
);

/** Writes the model with these tensors beside its weights. */
async function withExtra(name: string, extra: Record<string, number[]>): Promise<string> {
  const place = join(folder, name);
  await saveModel(place, model, { tokenizer: null });
  const file = join(place, "model.safetensors");
  const { tensors } = await readSafetensors(file);
  const kept: TensorSource[] = [];
  for (const { name, dtype, shape, readBytes } of tensors.values()) {
    const bytes = await readBytes();
    kept.push({ name, dtype: dtype, shape, bytes: () => bytes });
  }
  const added = Object.entries(extra).map(([name, shape]): TensorSource => {
    const bytes = new Uint8Array(4 * shape.reduce((product, size) => product * size, 1));
    return { name, dtype: "F32", shape, bytes: () => bytes };
  });
  await rm(file);
  await writeSafetensors(file, [...kept, ...added]);
  return place;
}

test("buffers that follow from the configuration are passed over, by their exact names", async () => {
  const place = await withExtra("derived", {
    "rotary_emb.inv_freq": [8],
    "model.rotary_emb.inv_freq": [8],
    "model.rotary_emb.original_inv_freq": [8],
    "model.layers.0.self_attn.rotary_emb.inv_freq": [8],
    "model.layers.1.self_attn.rotary_emb.inv_freq": [8],
    "model.layers.1.self_attn.rotary_emb.cos_cached": [1, 1, 32, 16],
    "model.layers.1.self_attn.rotary_emb.sin_cached": [1, 1, 32, 16],
    "model.layers.0.attn.bias": [1, 1, 32, 32],
    "model.layers.0.attn.masked_bias": [],
    "model.layers.1.self_attn.bias": [32, 32],
    "model.layers.1.self_attn.masked_bias": [],
    "model.causal_mask": [32, 32],
  });
  expect(await logits(await loadModel(place))).toEqual(await logits(model));
});

test("a tied head is read where it alone is stored, and refused where it is another matrix", async () => {
  const tied = await Llama.create(llamaConfig({ ...shape, tieEmbeddings: true }), { seed: 4 });
  /** The tied model's folder with its embedding under these names, some changed. */
  const stored = async (name: string, names: Record<string, boolean>) => {
    const place = join(folder, name);
    await saveModel(place, tied, { tokenizer: null });
    const file = join(place, "model.safetensors");
    const { tensors } = await readSafetensors(file);
    const kept: TensorSource[] = [];
    for (const { name, dtype, shape, readBytes } of tensors.values()) {
      const bytes = await readBytes();
      if (name !== "model.embed_tokens.weight") {
        kept.push({ name, dtype, shape, bytes: () => bytes });
        continue;
      }
      for (const [one, changed] of Object.entries(names)) {
        const copy = bytes.slice();
        if (changed) copy[2] = (copy[2] as number) ^ 1;
        kept.push({ name: one, dtype, shape, bytes: () => copy });
      }
    }
    await rm(file);
    await writeSafetensors(file, kept);
    return place;
  };
  const both = { "lm_head.weight": false, "model.embed_tokens.weight": false };
  const places = [
    await stored("tied-both", both),
    await stored("tied-head", { "lm_head.weight": false }),
  ];
  for (const place of places) {
    expect(await logits(await loadModel(place))).toEqual(await logits(tied));
    const out = `${place}-again`;
    await exportHuggingFace(place, out, { dtype: "float32" });
    expect(await logits(await loadModel(out))).toEqual(await logits(tied));
  }
  const other = await stored("tied-other", { ...both, "lm_head.weight": true });
  for (const use of [
    () => loadModel(other),
    () => exportHuggingFace(other, `${other}-again`),
    () => exportGguf(other, `${other}.gguf`, { tokenizer: false }),
  ]) {
    await expect(use()).rejects.toThrow(
      /lm_head.weight differs from model.embed_tokens.weight.*Set tie_word_embeddings to false to/,
    );
  }
});

test.each([
  ["model.layers.2.self_attn.rotary_emb.inv_freq", [8]],
  ["model.layers.0.self_attn.q_proj.bias", [32]],
  ["model.layers.0.attn.bias", [96]],
  ["model.layers.0.self_attn.rotary_emb.inv_freq_", [8]],
  ["inv_freq", [8]],
])("what may be a weight is not: %s", async (name, shape) => {
  const place = await withExtra(`unknown-${name}-${shape.join("x")}`, { [name]: shape });
  await expect(loadModel(place)).rejects.toThrow(`1 tensors unexpected:\n  ${name}`);
  await expect(loadModel(place)).rejects.toThrow(CheckpointError);
});

test("saveModel with a tokenizer leaves a whole folder; without one it says what is missing", async () => {
  const notices: string[] = [];
  const onNotice = (message: string) => notices.push(message);
  const whole = join(folder, "whole");
  await saveModel(whole, model, { tokenizer, onNotice });
  expect(notices).toEqual([]);
  expect((await readdir(whole)).sort()).toEqual(
    ["config.json", "model.safetensors", ...Object.keys(tokenizer.contents())].sort(),
  );
  const config = JSON.parse(await readFile(join(whole, "config.json"), "utf8"));
  expect(config).toMatchObject({ bos_token_id: tokenizer.bosId, eos_token_id: tokenizer.eosId });

  const bare = join(folder, "bare");
  await saveModel(bare, model, { onNotice });
  expect(notices).toHaveLength(1);
  expect(notices[0]).toContain(`${bare} has no tokenizer.json`);
  expect(notices[0]).toContain("config.json does not name the end of a text");
  await saveModel(join(folder, "knowingly"), model, { tokenizer: null, onNotice });
  expect(notices).toHaveLength(1);

  const small = await Llama.create(llamaConfig({ ...shape, vocabSize: 300 }));
  await expect(saveModel(join(folder, "small"), small, { tokenizer })).rejects.toThrow(
    TokenizerError,
  );
  for (const [options, message] of [
    [{ tokenizer: quickstart }, /expected a Tokenizer/],
    [{ shardBytes: 0 }, /shardBytes/],
    [{ onNotice: 5 }, /onNotice/],
    [{ dtype: "int4" }, /dtype/],
    [{ eosTokenId: "two" }, /eosTokenId/],
    [{ bosTokenId: 1e9 }, /bosTokenId/],
    [{ tokeniser: tokenizer }, /tokeniser/],
    [5, /options/],
  ] as unknown as [SaveModelOptions, RegExp][]) {
    const failed = saveModel(join(folder, "never"), model, options);
    await expect(failed).rejects.toThrow(message);
    await expect(failed).rejects.toThrow(ArgumentError);
  }
  await expect(saveModel(5 as never, model)).rejects.toThrow(ArgumentError);
  await expect(saveModel(join(folder, "never"), {} as never)).rejects.toThrow(ArgumentError);
  expect(await readdir(folder)).not.toContain("never");
});

test("a run's checkpoint takes neither links nor buffers", async () => {
  const place = join(folder, "strict");
  await saveModel(place, model, { tokenizer });
  const copy = join(folder, "strict-copy");
  await cp(place, copy, { recursive: true });
  await rm(join(copy, "model.safetensors"));
  await symlink(join(place, "model.safetensors"), join(copy, "model.safetensors"));
  await expect(readSafetensors(join(copy, "model.safetensors"))).rejects.toThrow(
    /symbolic link|ELOOP/,
  );
});
