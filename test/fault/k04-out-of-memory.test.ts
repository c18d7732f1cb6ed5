// docs/faults.md, row K4: memory runs out at each allocation of a training step in turn. The error
// is typed and gives need and use. No weight, moment or statistic changes, nothing leaks, and the
// next step has the values of an undisturbed run.
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, expect, test } from "vitest";
import { OutOfMemoryError } from "../../lib/core/errors.js";
import { memory, resetPeakMemory, setMemoryLimit, synchronize } from "../../lib/core/runtime.js";
import { Llama } from "../../lib/model/llama.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { AdamW } from "../../lib/optim/adamw.js";
import { trainStep } from "../../lib/train/step.js";
import { Trainer } from "../../lib/train/trainer.js";
import { tinyConfig, tinyData } from "../support/tiny-run.js";

afterEach(() => setMemoryLimit(0));

const config = llamaConfig({
  vocabSize: 64,
  hiddenSize: 32,
  intermediateSize: 48,
  layers: 2,
  heads: 2,
  kvHeads: 1,
  contextLength: 16,
  ropeTheta: 10_000,
  rmsNormEps: 1e-5,
  tieEmbeddings: false,
});
const inputs = Int32Array.from({ length: 64 }, (_, i) => (i * 7) % 64);
const targets = inputs.map((id) => (id + 1) % 64);

async function makeRun() {
  const model = await Llama.create(config, { dtype: "bf16", seed: 1 });
  const optimizer = new AdamW(model.store);
  const step = async () => {
    const { figures } = await trainStep({
      model,
      optimizer,
      nextBatch: async () => ({ inputs, targets, count: 4 }),
      accumulation: 2,
      lr: 1e-3,
      clip: 1,
    });
    return (await figures).loss;
  };
  const state = async () => {
    const hash = createHash("sha256");
    hash.update(new Uint8Array(await optimizer.guardState.toBytes()));
    for (const group of model.store.groups) {
      const { m, v } = optimizer.moments(group);
      for (const part of [group.weights, group.master, m, v]) {
        if (part) hash.update(new Uint8Array(await part.toBytes()));
      }
    }
    return hash.digest("hex");
  };
  return { step, state };
}

test("every allocation of a step fails once, and the step can be taken again as if nothing had been", async () => {
  const control = await makeRun();
  const run = await makeRun();
  // The first step makes permanent tensors: rotary tables and gradient buffers.
  expect(await run.step()).toBe(await control.step());
  await synchronize();
  const base = memory();
  resetPeakMemory();
  const before = await run.state();
  const losses = [await control.step(), await control.step()];
  await synchronize();
  const needed = memory().peakBytes - base.bytes;
  expect(needed).toBeGreaterThan(50_000);

  // Every limit between the running sums of two allocations makes another allocation fail, except
  // in the smallest size class.
  let failures = 0;
  const taken: number[] = [];
  const sizes = new Set<string>();
  for (let room = 0; room < needed; room += 64 * 8) {
    setMemoryLimit(base.bytes + room);
    const outcome = await run.step().catch((thrown: unknown) => thrown);
    setMemoryLimit(0);
    if (typeof outcome === "number") {
      taken.push(outcome); // the limit was high enough
      break;
    }
    const error = outcome;
    expect(error).toBeInstanceOf(OutOfMemoryError);
    const message = (error as Error).message;
    // The message has the operation, the tensor if one is being made, need and use.
    expect(message).toMatch(
      /^\[\w+\] (no memory for \w+ of shape \[[\d,]*\]: )?needs \d+ bytes more, but \d+ of the allowed \d+ are/,
    );
    sizes.add(message.slice(0, message.indexOf(" bytes more")));
    await synchronize();
    expect(memory().tensors).toBe(base.tensors);
    expect(memory().bytes).toBe(base.bytes);
    failures++;
    expect(await run.state(), message).toBe(before);
  }
  expect(failures).toBeGreaterThan(50);
  expect(sizes.size).toBeGreaterThan(8);
  while (taken.length < losses.length) taken.push(await run.step());
  expect(taken).toEqual(losses);
}, 120_000);

test("a run that runs out of memory ends with code 70 and leaves its last checkpoint as it was", async () => {
  const { folder, data } = await tinyData();
  const out = join(folder, "run");
  const trainer = await Trainer.create(tinyConfig(data, out));
  const done: number[] = [];
  const running = (async () => {
    for await (const { step } of trainer.run()) {
      done.push(step);
      // Steps run ahead of this loop: the memory in use now may be the most that any step needs.
      if (step === 7) setMemoryLimit(1);
    }
  })();
  const error = await running.then(
    () => null,
    (thrown: unknown) => thrown,
  );
  setMemoryLimit(0);
  expect(error).toBeInstanceOf(OutOfMemoryError);
  expect((error as OutOfMemoryError).exitCode).toBe(70);
  expect(done.at(-1)).toBeLessThan(12);
  await readFile(join(out, "step-0000000005", "manifest.json"));
  // The lock of the folder is released, and the run can be resumed.
  trainer.dispose();
  const again = await Trainer.create(tinyConfig(data, out));
  expect(again.startStep).toBe(5);
  for await (const _ of again.run());
  expect(again.result.finished).toBe(true);
  again.dispose();
}, 60_000);
