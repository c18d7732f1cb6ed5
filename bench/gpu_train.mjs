// Training speed of TinyLlama-1.1B on one GPU, on random tokens:
//
//   node bench/gpu_train.mjs [--micro-batches 8,16] [--accumulation 2] [--steps 6] [--recompute none] [--out FILE]
//
// A step is timed from the end of the one before it, so that launches overlap as they do in training; the figure is the
// median after two. FLOPs are counted causally (6.760 GFLOP a token) and with full attention (7.314, TinyLlama's way).
import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import {
  AdamW,
  flopsPerToken,
  Llama,
  memory,
  parseDevice,
  presets,
  resetPeakMemory,
  synchronize,
  trainStep,
} from "../dist/index.js";

const { values: options } = parseArgs({
  options: {
    device: { type: "string", default: "cuda:0" },
    "micro-batches": { type: "string", default: "8,16" },
    accumulation: { type: "string", default: "2" },
    steps: { type: "string", default: "6" },
    recompute: { type: "string", default: "none" },
    out: { type: "string" },
  },
});
const device = parseDevice(options.device);
const config = presets["tinyllama-1.1b"];
const time = config.contextLength;
const accumulation = Number(options.accumulation);
const median = (numbers) => [...numbers].sort((a, b) => a - b)[Math.floor(numbers.length / 2)];

const model = await Llama.create(config, { device, dtype: "bf16", seed: 3407 });
model.recompute = options.recompute;
const optimizer = new AdamW(model.store, { weightDecay: 0.1 });
await synchronize(device);
const results = [];
let seed = 1;
for (const microBatch of options["micro-batches"].split(",").map(Number)) {
  const random = () => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return seed % config.vocabSize;
  };
  const ids = () => Int32Array.from({ length: microBatch * time }, random);
  const batch = { inputs: ids(), targets: ids(), count: microBatch };
  const times = [];
  const losses = [];
  resetPeakMemory(device);
  try {
    let running = null;
    let last = performance.now();
    for (let step = 0; step <= Number(options.steps); step++) {
      const next =
        step < Number(options.steps)
          ? await trainStep({
              model,
              optimizer,
              nextBatch: async () => batch,
              accumulation,
              lr: 1e-4,
              clip: 1,
            })
          : null;
      if (running) {
        losses.push((await running.figures).loss);
        const now = performance.now();
        times.push(now - last);
        last = now;
      }
      running = next;
    }
    const tokensPerSecond = (microBatch * accumulation * time) / (median(times.slice(2)) / 1000);
    const { causal, fullAttention: full } = flopsPerToken(config, time);
    const peakGB = memory(device).peakBytes / 1e9;
    results.push({
      microBatch,
      accumulation,
      tokensPerSecond,
      causalTflops: (tokensPerSecond * causal) / 1e12,
      peakGB,
      losses,
      times,
    });
    console.log(
      `micro-batch ${microBatch} x ${time}, ${accumulation} accumulated: ${Math.round(tokensPerSecond).toLocaleString("en-US")} tok/s, ` +
        `${((tokensPerSecond * causal) / 1e12).toFixed(0)} TFLOP/s causal, ${((tokensPerSecond * full) / 1e12).toFixed(0)} with full attention, ` +
        `peak ${peakGB.toFixed(1)} GB, losses ${losses.map((loss) => loss.toFixed(3)).join(" ")}, ` +
        `${(300e9 / tokensPerSecond / 3600).toFixed(0)} hours per 300B tokens`,
    );
  } catch (error) {
    results.push({ microBatch, error: error.message });
    console.log(`micro-batch ${microBatch}: ${error.message}`);
    await synchronize(device).catch(() => {});
  }
}
if (options.out) writeFileSync(options.out, `${JSON.stringify(results, null, 2)}\n`);
