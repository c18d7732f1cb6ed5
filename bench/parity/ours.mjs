// Our half of the comparison (README.md): makes the initial weights and the tokens for both halves,
// and our losses.
//
//   node bench/parity/ours.mjs --data FOLDER=WEIGHT,... --out FOLDER [--device cuda:0] [--steps 300]
import { closeSync, mkdirSync, openSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import {
  AdamW,
  cosineSchedule,
  Llama,
  loadModel,
  Mixture,
  parseDevice,
  presets,
  saveModel,
  trainStep,
} from "../../dist/index.js";
import { parseSources, run } from "./run.mjs";

const { values: options } = parseArgs({
  options: {
    data: { type: "string" },
    out: { type: "string" },
    device: { type: "string", default: "cuda:0" },
    steps: { type: "string", default: String(run.steps) },
  },
});
if (!options.data || !options.out)
  throw new Error("usage: ours.mjs --data FOLDER=WEIGHT,... --out FOLDER");
const device = parseDevice(options.device);
const settings = { ...run, steps: Number(options.steps) };
const { microBatch, accumulation, sequenceLength, steps, clip } = settings;
mkdirSync(options.out, { recursive: true });

// The weights are written in f32, because both halves keep f32 master weights.
const initial = join(options.out, "initial");
const first = await Llama.create(presets[run.preset], { device, dtype: "f32", seed: run.seed });
await saveModel(initial, first);
first.dispose();

const mixture = await Mixture.open(parseSources(options.data), { sequenceLength, seed: run.seed });
const tokens = openSync(join(options.out, "tokens.bin"), "w");
const rows = microBatch * accumulation;
for (let step = 0; step < steps; step++) {
  // Reads windows of T + 1 ids.
  writeSync(tokens, Uint16Array.from(await mixture.read(step * rows, rows)));
}
closeSync(tokens);
writeFileSync(join(options.out, "run.json"), `${JSON.stringify(settings, null, 2)}\n`);

const model = await loadModel(initial, { device, dtype: "bf16", training: true });
const { beta1, beta2, eps, weightDecay } = settings;
const optimizer = new AdamW(model.store, { beta1, beta2, eps, weightDecay });
const schedule = cosineSchedule(settings);
const loader = mixture.loader(microBatch, 0);
const losses = [];
const gradNorms = [];
const started = performance.now();
const finish = async (running) => {
  const { loss, decision } = await running.figures;
  losses.push(loss);
  gradNorms.push(decision[4]);
};
let before = null;
for (let step = 0; step < steps; step++) {
  const running = await trainStep({
    model,
    optimizer,
    nextBatch: () => loader.next(),
    accumulation,
    lr: schedule(step),
    clip,
  });
  if (before) await finish(before);
  before = running;
}
if (before) await finish(before);
const seconds = (performance.now() - started) / 1000;
await loader.close();
await mixture.close();
writeFileSync(
  join(options.out, "ours.json"),
  `${JSON.stringify({ losses, gradNorms, seconds })}\n`,
);
console.log(
  `ours: loss ${losses[0].toFixed(4)} -> ${losses.at(-1).toFixed(4)} in ${seconds.toFixed(1)} s`,
);
