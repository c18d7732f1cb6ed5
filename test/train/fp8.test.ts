// Runs in fp8: figures of their tensors in the records, and layers that go back to bf16.
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { openNewest } from "../../lib/checkpoint/load.js";
import { loadModel, saveModel } from "../../lib/checkpoint/model.js";
import type { RunConfig } from "../../lib/config/index.js";
import { tensor } from "../../lib/core/create.js";
import { ArgumentError } from "../../lib/core/errors.js";
import { openHeldOut } from "../../lib/data/held-out.js";
import type { Mixture } from "../../lib/data/mixture.js";
import { Llama } from "../../lib/model/llama.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { writeParameter } from "../../lib/nn/store.js";
import { readRun } from "../../lib/report/events.js";
import { renderReport } from "../../lib/report/html.js";
import { validationLoss } from "../../lib/train/evaluate.js";
import { readMetrics, type StepMetrics } from "../../lib/train/metrics.js";
import { Trainer } from "../../lib/train/trainer.js";
import { tinyConfig, tinyData, tinyModel } from "../support/tiny-run.js";

let folder: string;
let data: string;
beforeAll(async () => {
  ({ folder, data } = await tinyData());
});

let runs = 0;
const freshOut = () => join(folder, `fp8-run-${runs++}`);

async function run(config: RunConfig, stopAfter?: number) {
  const notices: string[] = [];
  const trainer = await Trainer.create(config, { onNotice: (message) => notices.push(message) });
  const steps: StepMetrics[] = [];
  for await (const step of trainer.run()) {
    steps.push(step);
    if (step.step === stopAfter) trainer.stop();
  }
  trainer.dispose();
  return { steps, notices };
}

const figures = (steps: StepMetrics[]) =>
  steps.map(({ step, loss, gradNorm, fp8 }) => [step, loss, gradNorm, fp8]);

test("records the figures of the first step and of every fiftieth after it", async () => {
  const out = freshOut();
  const { steps, notices } = await run(
    tinyConfig(data, out, { precision: "fp8", steps: 52, checkpoint: { every: 0 } }),
  );
  expect(notices.filter((notice) => notice.includes("bf16"))).toEqual([]);
  const watched = steps.filter(({ fp8 }) => fp8);
  expect(watched.map(({ step }) => step)).toEqual([1, 51]);
  for (const { fp8 } of watched) {
    expect(fp8?.largest["down.input"]).toHaveLength(tinyModel.layers);
    for (const x of fp8?.largest["down.input"] ?? []) expect(x).toBeGreaterThan(0);
  }
  const read = await readMetrics(join(out, "metrics.jsonl"));
  expect(figures(read)).toEqual(figures(steps));
  const html = await renderReport(await readRun(out));
  expect(html).toContain("Tensors in fp8");
  expect(html).toContain("gateUp.gradient");
});

test("validates in bf16: the loss is that of the checkpoint", async () => {
  const out = freshOut();
  const config = tinyConfig(data, out, { precision: "fp8", evaluate: { every: 12, batches: 2 } });
  const { steps } = await run(config);
  const { validation } = steps.at(-1) as StepMetrics;
  const checkpoint = await openNewest(out);
  const model = await loadModel(checkpoint?.path as string, { dtype: "bf16", training: true });
  const split = { sequenceLength: config.data.sequenceLength, seed: config.seed };
  const held = await openHeldOut({ [data]: 1 }, split, () => {});
  const lossOf = async () => {
    const options = { batches: 2, microBatch: 4, documents: config.data };
    return (await validationLoss(model, held as Mixture, options)).loss;
  };
  expect(await lossOf()).toBe(validation?.loss);
  // Passes of its own are in fp8 where the model is, and have another loss.
  model.fp8 = true;
  expect(await lossOf()).toBe(validation?.loss);
  const ids = tensor(new Int32Array(32).fill(7), { shape: [1, 32] });
  const lossOfPass = () => model.loss({ inputs: ids, targets: ids }).item();
  const inFp8 = await lossOfPass();
  expect(model.withoutFp8(() => model.computesInFp8)).toBe(false);
  expect(await model.withoutFp8(lossOfPass)).not.toBe(inFp8);
  expect(await lossOfPass()).toBe(inFp8);
  await held?.close();
  model.dispose();
});

/** A model whose second layer's attention gives 1.75 for every token: fp8's largest number, scaled. */
async function saturated(): Promise<string> {
  const config = llamaConfig({
    ...{ ...tinyModel, attentionBias: true },
    ...{ ropeTheta: 10_000, rmsNormEps: 1e-5, tieEmbeddings: false },
  });
  const model = await Llama.create(config, { dtype: "bf16", seed: 5 });
  const { weight, bias } = (model.blocks[1] as Llama["blocks"][number]).attention.qkv;
  // Two heads of q and one of k come before v.
  const [values, biases] = [await weight.master.toArray(), await bias?.master.toArray()];
  const kept = 3 * config.headSize;
  writeParameter(
    weight,
    tensor(
      values.map((w, i) => (i < kept * config.hiddenSize ? w : 0)),
      { shape: weight.shape },
    ),
  );
  if (!bias || !biases) throw new ArgumentError("no bias");
  writeParameter(bias, tensor(biases.map((b, i) => (i < kept ? b : 1.75))));
  const place = freshOut();
  await saveModel(place, model, { tokenizer: null });
  model.dispose();
  return place;
}

test("takes a saturated layer out of fp8, and a resumed run has the bits of the unbroken one", async () => {
  const from = await saturated();
  const configOf = (out: string) =>
    tinyConfig(data, out, {
      precision: "fp8",
      model: { ...tinyModel, attentionBias: true },
      init: { from },
      checkpoint: { every: 0 },
    });
  const [whole, parts] = [freshOut(), freshOut()];
  const unbroken = await run(configOf(whole));
  const told = unbroken.notices.filter((notice) => notice.includes("computes in bf16"));
  expect(told).toEqual([
    "step 1: 100.0% of output.input of layer 1 are at fp8's largest number: layer 1 computes in bf16 from step 3 on",
  ]);
  // Stopped after its first step, it saves before the layer leaves fp8, or just then.
  const before = await run(configOf(parts), 1);
  const saved = await openNewest(parts);
  expect(saved?.trainer).toMatchObject({ fp8Fallbacks: [{ layer: 1, from: 2 }] });
  const after = await run(configOf(parts));
  expect(after.notices.filter((notice) => notice.includes("computes in bf16"))).toEqual([]);
  expect(figures([...before.steps, ...after.steps])).toEqual(figures(unbroken.steps));
  const [mine, theirs] = [await openNewest(parts), await openNewest(whole)];
  for (const file of ["model.safetensors", "optimizer-state.safetensors"]) {
    for (const [name, stored] of theirs?.tensors.get(file)?.tensors ?? []) {
      const same = await mine?.tensors.get(file)?.tensors.get(name)?.readBytes();
      expect(Buffer.compare(Buffer.from(same ?? []), Buffer.from(await stored.readBytes()))).toBe(
        0,
      );
    }
  }
});
