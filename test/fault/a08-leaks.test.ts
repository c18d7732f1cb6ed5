import { expect, test } from "vitest";
import { memory, synchronize } from "../../lib/core/runtime.js";
import { Llama } from "../../lib/model/llama.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { AdamW } from "../../lib/optim/adamw.js";
import { trainStep } from "../../lib/train/step.js";

// docs/faults.md, row A8: the memory of a run of weeks must not grow. For 100,000 steps set
// LLAMAFORGE_LEAK_STEPS=100000.
const measured = Number(process.env.LLAMAFORGE_LEAK_STEPS ?? 10_000);

test(`${measured} training steps: live tensors, device bytes and resident memory stay flat`, async () => {
  const config = llamaConfig({
    vocabSize: 16,
    hiddenSize: 8,
    intermediateSize: 8,
    layers: 1,
    heads: 2,
    kvHeads: 1,
    contextLength: 4,
    ropeTheta: 10_000,
    rmsNormEps: 1e-5,
    tieEmbeddings: false,
  });
  const model = await Llama.create(config, { dtype: "bf16", seed: 1 });
  const optimizer = new AdamW(model.store);
  const inputs = Int32Array.of(1, 2, 3, 4, 5, 6, 7, 8);
  const targets = Int32Array.of(2, 3, 4, 5, 6, 7, 8, 9);
  const nextBatch = async () => ({ inputs, targets, count: 2 });
  const train = async (steps: number): Promise<number> => {
    let last = Number.NaN;
    for (let step = 0; step < steps; step++) {
      const { figures } = await trainStep({
        model,
        optimizer,
        nextBatch,
        accumulation: 1,
        lr: 1e-3,
        clip: 1,
      });
      if (step % 50 === 49) ({ loss: last } = await figures);
    }
    await synchronize();
    return last;
  };
  // V8's heap for young objects doubles one last time, by 16 MB, within the first thousands of
  // steps.
  await train(6000);
  const before = { ...memory(), rss: process.memoryUsage.rss() };
  const loss = await train(measured);
  const after = memory();
  expect(loss).toBeLessThan(0.1);
  expect(after.tensors).toBe(before.tensors);
  expect(after.bytes).toBe(before.bytes);
  expect(process.memoryUsage.rss() - before.rss).toBeLessThan(24 << 20);
  optimizer.dispose();
  model.dispose();
}, 3_600_000);
