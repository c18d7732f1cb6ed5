/** Adapters that are merged into the wrong model, twice, or by halves. */
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { loadModel, saveModel } from "../../lib/checkpoint/model.js";
import {
  readSafetensors,
  type TensorSource,
  writeSafetensors,
} from "../../lib/checkpoint/safetensors.js";
import { noGrad } from "../../lib/core/autograd.js";
import { tensor } from "../../lib/core/create.js";
import { CheckpointError, UsageError } from "../../lib/core/errors.js";
import { scope } from "../../lib/core/scope.js";
import { exportHuggingFace } from "../../lib/export/hugging-face.js";
import { mergeAdapter } from "../../lib/export/merge.js";
import { Llama } from "../../lib/model/llama.js";
import { llamaConfig } from "../../lib/model/llama-config.js";

const shape = llamaConfig({
  vocabSize: 64,
  hiddenSize: 16,
  intermediateSize: 24,
  layers: 2,
  heads: 2,
  kvHeads: 1,
  contextLength: 32,
  ropeTheta: 1e4,
  rmsNormEps: 1e-5,
  tieEmbeddings: false,
});
const rank = 2;
const name = (matrix: string, half: "A" | "B") => `base_model.model.${matrix}.lora_${half}.weight`;

let folder: string;
let base: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "llamaforge-merge-"));
  base = join(folder, "base");
  const model = await Llama.create(shape, { seed: 3 });
  await saveModel(base, model, { tokenizer: null });
  model.dispose();
});
afterAll(() => rm(folder, { recursive: true }));

/** An adapter's folder in PEFT's form with these tensors. */
async function adapterOf(
  tensors: Record<string, readonly number[] | Float32Array>,
  settings: object = {},
): Promise<string> {
  const place = await mkdtemp(join(folder, "adapter-"));
  const config = {
    peft_type: "LORA",
    base_model_name_or_path: base,
    r: rank,
    lora_alpha: 4,
    target_modules: ["q_proj"],
    ...settings,
  };
  await writeFile(join(place, "adapter_config.json"), JSON.stringify(config));
  const sources = Object.entries(tensors).map(([name, given], index): TensorSource => {
    const isShape = Array.isArray(given);
    const shape = isShape ? (given as number[]) : [64, 16];
    const size = shape.reduce((product, extent) => product * extent, 1);
    const values = isShape
      ? Float32Array.from({ length: size }, (_, i) => 0.1 * Math.sin(i + index))
      : (given as Float32Array);
    return { name, dtype: "F32", shape, bytes: () => new Uint8Array(values.slice().buffer) };
  });
  await writeSafetensors(join(place, "adapter_model.safetensors"), sources);
  return place;
}

const q = (layer: number) => `model.layers.${layer}.self_attn.q_proj`;
const halves = (matrix: string, outputs = 16) => ({
  [name(matrix, "A")]: [rank, 16],
  [name(matrix, "B")]: [outputs, rank],
});

async function logitsOf(path: string): Promise<number[]> {
  const model = await loadModel(path);
  const ids = tensor([[1, 5, 40, 17]], { dtype: "i32" });
  const logits = await scope(() => noGrad(() => model.forward(ids)).toArray());
  model.dispose();
  return [...logits];
}

describe("an adapter", () => {
  test("is merged once: its result, and folders made of it, refuse it", async () => {
    const adapter = await adapterOf({ ...halves(q(0)), ...halves(q(1)) });
    const merged = join(folder, "merged");
    await mergeAdapter(adapter, merged, { dtype: "float32" });
    expect(await logitsOf(merged)).not.toEqual(await logitsOf(base));
    const again = join(folder, "again");
    await exportHuggingFace(merged, again, { dtype: "float32", shardBytes: 3000 });
    for (const place of [merged, again]) {
      const twice = mergeAdapter(adapter, join(folder, "twice"), { base: place });
      await expect(twice).rejects.toThrow(UsageError);
      await expect(twice).rejects.toThrow(`${place} holds this adapter already: give the model`);
    }
    const other = await adapterOf({ ...halves(q(1)), ...halves(q(0)) });
    const both = join(folder, "both");
    await mergeAdapter(other, both, { base: merged, dtype: "float32" });
    const third = mergeAdapter(adapter, join(folder, "twice"), { base: both });
    await expect(third).rejects.toThrow("holds this adapter already");
    expect((await readdir(folder)).filter((one) => one.startsWith("twice"))).toEqual([]);
  });

  test("of another model is refused, unless it says that it is for some layers", async () => {
    const part = halves(q(1));
    const out = join(folder, "part");
    const refused = mergeAdapter(await adapterOf(part), out);
    await expect(refused).rejects.toThrow(CheckpointError);
    await expect(refused).rejects.toThrow(
      /has no adapter of model\.layers\.0\.self_attn\.q_proj, but target_modules.*another model/,
    );
    await mergeAdapter(await adapterOf(part, { layers_to_transform: [1] }), out);
    const whole = { target_modules: [q(1)] };
    await mergeAdapter(await adapterOf(part, whole), `${out}-named`);
  });

  test("that lacks a half, or is a pickle, or of an embedding, is told so", async () => {
    const { [name(q(0), "A")]: _, ...half } = halves(q(0));
    const out = join(folder, "none");
    await expect(mergeAdapter(await adapterOf({ ...half, ...halves(q(1)) }), out)).rejects.toThrow(
      `has ${name(q(0), "B")}, but no ${name(q(0), "A")}: an adapter is both`,
    );
    const embedding = "base_model.model.model.embed_tokens.lora_embedding_A";
    const tensors = { ...halves(q(0)), ...halves(q(1)), [embedding]: [rank, 64] };
    await expect(mergeAdapter(await adapterOf(tensors), out)).rejects.toThrow(
      /lora_embedding_A: adapters of an embedding cannot be merged/,
    );
    const pickled = await adapterOf({ ...halves(q(0)), ...halves(q(1)) });
    const weights = join(pickled, "adapter_model.safetensors");
    await cp(weights, join(pickled, "adapter_model.bin"));
    await rm(weights);
    await expect(mergeAdapter(pickled, out)).rejects.toThrow(
      /adapter_model\.bin alone, a Python pickle: expected adapter_model\.safetensors\. Convert/,
    );
    expect((await readdir(folder)).includes("none")).toBe(false);
  });

  test("of the head may come with the head itself, as PEFT saves it, if that is the model's", async () => {
    const { tensors } = await readSafetensors(join(base, "model.safetensors"));
    const bytes = (await tensors.get("lm_head.weight")?.readBytes()) as Uint8Array;
    const head = new Float32Array(bytes.slice().buffer);
    const copy = "base_model.model.lm_head.base_layer.weight";
    const all = { ...halves(q(0)), ...halves(q(1)), ...halves("lm_head", 64) };
    const settings = { target_modules: ["q_proj", "lm_head"] };
    const out = join(folder, "head");
    await mergeAdapter(await adapterOf({ ...all, [copy]: head }, settings), out);
    expect(await readFile(join(out, "config.json"), "utf8")).toContain("bfloat16");
    const changed = head.map((value) => value + 1);
    const other = mergeAdapter(await adapterOf({ ...all, [copy]: changed }, settings), `${out}-2`);
    await expect(other).rejects.toThrow(`${copy}, which belongs to no matrix`);
  });
});
