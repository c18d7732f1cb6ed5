// Compares the memory that `plan` predicts with the memory of a step on the GPU, for both
// TinyLlamas at two micro-batch sizes:
//
//   node bench/gpu-plan.mjs [--device cuda:0] [--out FILE]
//
// Exit code 1 if a prediction is off by more than 5%.
import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import {
  AdamW,
  Llama,
  memory,
  parseDevice,
  planRun,
  resetPeakMemory,
  resolveConfig,
  synchronize,
  trainStep,
} from "../dist/index.js";

const { values: options } = parseArgs({
  options: { device: { type: "string", default: "cuda:0" }, out: { type: "string" } },
});
const device = parseDevice(options.device);
const results = [];
for (const [preset, microBatches, recompute] of [
  ["tinyllama-120m", [4, 16], "none"],
  ["tinyllama-1.1b", [4, 16], "none"],
  ["tinyllama-1.1b", [16], "ffn"],
  ["tinyllama-1.1b", [16], "block"],
]) {
  const before = memory(device).bytes;
  const first = resolveConfig({
    steps: 1,
    device: "cuda",
    model: { preset },
    data: { train: { none: 1 } },
  });
  const model = await Llama.create(first.model, { device, dtype: "bf16", seed: 1 });
  model.recompute = recompute;
  const optimizer = new AdamW(model.store, { weightDecay: 0.1 });
  await synchronize(device);
  for (const microBatch of microBatches) {
    const config = resolveConfig({
      steps: 1,
      device: "cuda",
      precision: "bf16",
      model: { preset },
      data: { train: { none: 1 }, sequenceLength: 2048 },
      batch: { microBatch },
      recompute,
    });
    const plan = planRun(config).memory;
    const ids = Int32Array.from({ length: microBatch * 2048 }, (_, i) => (i * 7919) % 32_000);
    resetPeakMemory(device);
    // There are two micro-batches, so that the second finds the gradients of the first.
    const step = await trainStep({
      model,
      optimizer,
      nextBatch: async () => ({ inputs: ids, targets: ids, count: microBatch }),
      accumulation: 2,
      lr: 1e-4,
      clip: 1,
    });
    await step.figures;
    const peak = memory(device).peakBytes - before;
    results.push({ preset, recompute, microBatch, peak, plan });
    console.log(
      `${preset}, micro-batch ${microBatch}, recompute ${recompute}: peak ${(peak / 1e9).toFixed(2)} GB, ` +
        `planned ${(plan.total / 1e9).toFixed(2)} GB, ${((plan.total / peak - 1) * 100).toFixed(1)}% off (${Object.entries(
          plan,
        )
          .map(([part, bytes]) => `${part} ${(bytes / 1e9).toFixed(2)}`)
          .join(", ")})`,
    );
  }
  optimizer.dispose();
  model.dispose();
  await synchronize(device);
}
if (options.out) writeFileSync(options.out, `${JSON.stringify(results, null, 2)}\n`);
if (results.some(({ peak, plan }) => Math.abs(plan.total / peak - 1) > 0.05)) process.exitCode = 1;
