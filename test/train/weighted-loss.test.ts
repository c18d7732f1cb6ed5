/** A step's loss is the mean over all targets that count, whatever their number in each micro-batch. */
import { describe, expect, test } from "vitest";
import { tensor } from "../../lib/core/create.js";
import { ArgumentError } from "../../lib/core/errors.js";
import { scope } from "../../lib/core/scope.js";
import { countTargets, type HostBatch } from "../../lib/model/batch.js";
import { Llama } from "../../lib/model/llama.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { AdamW } from "../../lib/optim/adamw.js";
import { readDecision } from "../../lib/optim/guard.js";
import { type StepOptions, trainStep } from "../../lib/train/step.js";
import { relativeError } from "../support/reference.js";

const config = llamaConfig({
  vocabSize: 40,
  hiddenSize: 32,
  intermediateSize: 48,
  layers: 2,
  heads: 2,
  kvHeads: 1,
  contextLength: 12,
  ropeTheta: 10_000,
  rmsNormEps: 1e-5,
  tieEmbeddings: false,
});
const time = 12;

/** Two rows of ids of which the first `counted` targets count. */
function batchOf(seed: number, counted: number): HostBatch {
  const ids = Int32Array.from({ length: 2 * time }, (_, i) => (i * 7 + seed * 13) % 40);
  const targets = ids.map((id, i) => (i < counted ? (id + 5) % 40 : -100));
  return { inputs: ids, targets, count: 2 };
}

/** All rows of several batches as one. */
function joined(batches: readonly HostBatch[]): HostBatch {
  const all = (field: "inputs" | "targets") =>
    Int32Array.from(batches.flatMap((batch) => [...batch[field]]));
  return { inputs: all("inputs"), targets: all("targets"), count: 2 * batches.length };
}

/** Loss, gradient norm and weights after one step. */
async function step(batches: readonly HostBatch[]) {
  const model = await Llama.create(config, { seed: 4 });
  const optimizer = new AdamW(model.store, { weightDecay: 0 });
  const left = [...batches];
  const running = await trainStep({
    model,
    optimizer,
    nextBatch: async () => left.shift() as HostBatch,
    accumulation: batches.length,
    lr: 1e-3,
    clip: 0,
  });
  const { loss, decision } = await running.figures;
  const weights = [...(await model.headWeight.tensor.toArray())];
  optimizer.dispose();
  model.dispose();
  return { loss, decision: readDecision(decision), weights, running };
}

describe("micro-batches with different numbers of targets", () => {
  test.each([[[24, 3, 10]], [[1, 24]], [[24, 0]]])(
    "of %j targets step as one batch of all of them",
    async (counts) => {
      const batches = counts.map((counted, seed) => batchOf(seed, counted));
      const apart = await step(batches);
      const together = await step([joined(batches)]);
      expect(apart.loss).toBeCloseTo(together.loss, 5);
      expect(relativeError([apart.decision.gradNorm], [together.decision.gradNorm])).toBeLessThan(
        1e-5,
      );
      expect(relativeError(apart.weights, together.weights)).toBeLessThan(1e-5);
      expect(apart.running).toMatchObject({
        windows: 2 * counts.length,
        tokens: 24 * counts.length,
      });
    },
  );

  test("weigh alike, in the same bits as the mean of means, where the counts are equal", async () => {
    for (const counted of [24, 7]) {
      const batches = [0, 1, 2].map((seed) => batchOf(seed, counted));
      const { loss, weights } = await step(batches);
      const model = await Llama.create(config, { seed: 4 });
      const optimizer = new AdamW(model.store, { weightDecay: 0 });
      let mean = 0;
      await scope(async () => {
        const third = Math.fround(1 / 3);
        for (const { inputs, targets } of batches) {
          const ids = (data: Int32Array) => tensor(data, { shape: [2, time], dtype: "i32" });
          const one = model.loss({ inputs: ids(inputs), targets: ids(targets) });
          one.backward({ scale: 1 / 3 });
          mean = Math.fround(mean + Math.fround((await one.item()) * third));
        }
        optimizer.step({ lr: 1e-3, clip: 0 });
        expect([...(await model.headWeight.tensor.toArray())]).toEqual(weights);
      });
      expect(Math.abs(loss - mean)).toBeLessThan(1e-6);
      optimizer.dispose();
      model.dispose();
    }
  });

  test("no target at all skips the step and changes nothing", async () => {
    const before = await Llama.create(config, { seed: 4 });
    const { loss, decision, weights } = await step([batchOf(0, 0), batchOf(1, 0)]);
    expect(loss).toBeNaN();
    expect(decision.applied).toBe(false);
    expect([...(await before.headWeight.tensor.toArray())]).toEqual(weights);
    before.dispose();
  });
});

test("a step that fails, or that is verified, leaves no gradients in the next one", async () => {
  const model = await Llama.create(config, { seed: 4 });
  const optimizer = new AdamW(model.store, { weightDecay: 0 });
  const normOf = async (batches: readonly HostBatch[], more: Partial<StepOptions> = {}) => {
    const left = [...batches];
    const nextBatch = async () => left.shift() as HostBatch;
    const options = { accumulation: batches.length, lr: 0, clip: 0, ...more };
    const { figures } = await trainStep({ model, optimizer, nextBatch, ...options });
    return readDecision((await figures).decision).gradNorm;
  };
  const good = batchOf(0, 24);
  const norm = await normOf([good]);
  const tooLong = { ...joined([good, good]), count: 1 };
  await expect(normOf([good, tooLong])).rejects.toThrow(/more than the model's context/);
  expect(await normOf([good])).toBe(norm);
  const verify = async (pass: () => void) => {
    pass();
    pass();
  };
  expect(await normOf([good], { verify })).toBe(norm);
  await expect(normOf([good], { verify: 5 as never })).rejects.toThrow(ArgumentError);
  await expect(normOf([good], { maskd: true } as never)).rejects.toThrow(/maskd/);
  optimizer.dispose();
  model.dispose();
});

test("a batch that is none is refused by its field", async () => {
  const { inputs, targets } = batchOf(0, 24);
  for (const [wrong, named] of [
    [{ inputs, targets, count: 5 }, /5 rows of equal length/],
    [{ inputs, targets: targets.slice(1), count: 2 }, /24 ids in targets/],
    [{ inputs: [1, 2], targets, count: 1 }, /Int32Array for inputs/],
    [{ inputs: new Int32Array(0), targets: new Int32Array(0), count: 1 }, /got none/],
    [null, /a batch/],
  ] as const) {
    await expect(step([wrong as never])).rejects.toThrow(ArgumentError);
    await expect(step([wrong as never])).rejects.toThrow(named);
  }
  expect(countTargets(targets)).toBe(24);
});
