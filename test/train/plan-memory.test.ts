import { expect, it } from "vitest";
import { Llama } from "../../lib/model/llama.js";
import { AdamW } from "../../lib/optim/adamw.js";
import { memory, resetPeakMemory } from "../../lib/tensor.js";
import { resolveConfig } from "../../lib/train/config.js";
import { planRun } from "../../lib/train/plan.js";
import { trainStep } from "../../lib/train/step.js";

// The plan is worth nothing if it does not say what a step really takes.
it.each([
  ["none", "bf16"],
  ["none", "fp32"],
  ["ffn", "bf16"],
  ["block", "bf16"],
] as const)("a step's peak is near its plan (recompute %s, %s)", async (recompute, precision) => {
  const config = resolveConfig({
    steps: 2,
    model: { preset: "quickstart", layers: 3 },
    batch: { microBatch: 4 },
    data: { train: { none: 1 } },
    precision,
    recompute,
  });
  const dtype = precision === "bf16" ? "bf16" : "f32";
  const before = memory().bytes;
  const model = await Llama.create(config.model, { dtype, seed: 1 });
  model.recompute = recompute;
  const { beta1, beta2, eps, weightDecay, decay } = config.optimizer;
  const optimizer = new AdamW(model.store, { beta1, beta2, eps, weightDecay, decay });
  const { microBatch } = config.batch;
  const ids = Int32Array.from({ length: microBatch * 256 }, (_, i) => (i * 7919) % 4096);
  resetPeakMemory();
  const step = await trainStep({
    model,
    optimizer,
    nextBatch: async () => ({ inputs: ids, targets: ids, count: microBatch }),
    accumulation: 1,
    lr: 1e-4,
    clip: 1,
  });
  await step.figures;
  const peak = memory().peakBytes - before;
  const planned = planRun(config).memory.total;
  expect(peak / planned).toBeGreaterThan(0.85);
  expect(peak / planned).toBeLessThan(1.15);
  optimizer.dispose();
  model.dispose();
});
