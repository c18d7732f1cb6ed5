// Measures choices of a training step on one device, each beside its alternative in turns:
//
//   node bench/gpu-choices.mjs [--preset tinyllama-1.1b] [--micro-batch 16] [--sequence-length 2048]
//     [--rounds 3] [--steps 6] [--device cuda:0] [--json FILE]
//
// fast: fp8 with weight gradients whose sums are left to the tensor cores, beside sums in f32.
// watch: fp8 with a look at its tensors in every step, beside none.
// muon: a step of Muon alone, beside one of AdamW, after a backward pass.
// The result has medians in milliseconds, and losses of equal batches from equal weights.
import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { median } from "../dist/bench/environment.js";
import {
  AdamW,
  batchTensors,
  Llama,
  Muon,
  memory,
  parseDevice,
  presets,
  scope,
  synchronize,
  trainStep,
} from "../dist/index.js";
import { fp8Choices } from "../dist/ops/fp8.js";
import { optimizerFlops } from "../dist/plan/flops.js";

const { values } = parseArgs({
  options: {
    preset: { type: "string", default: "tinyllama-1.1b" },
    "micro-batch": { type: "string", default: "16" },
    "sequence-length": { type: "string", default: "2048" },
    rounds: { type: "string", default: "3" },
    steps: { type: "string", default: "6" },
    device: { type: "string", default: "cuda:0" },
    json: { type: "string" },
  },
});
const device = parseDevice(values.device);
const shape = presets[values.preset];
const [count, length] = [Number(values["micro-batch"]), Number(values["sequence-length"])];
const [rounds, steps] = [Number(values.rounds), Number(values.steps)];

/** A batch of a step: numbers that a model can learn, without a data set. */
function batchOf(seed) {
  const make = () => new Int32Array(count * length);
  const [inputs, targets] = [make(), make()];
  let state = seed + 1;
  for (let i = 0; i < inputs.length; i++) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    inputs[i] = (state >>> 8) % 1000;
    targets[i] = (inputs[i] * 7 + 3) % 1000;
  }
  return { inputs, targets, count, length };
}

async function makeModel(precision) {
  const model = await Llama.create({ ...shape }, { device, dtype: "bf16", seed: 3407 });
  model.fp8 = precision === "fp8";
  return model;
}

/** Milliseconds and losses of steps, two enqueued at a time. */
async function run(model, optimizer, first, watch = null) {
  const [times, losses] = [[], []];
  await synchronize(device);
  let last = performance.now();
  let running = null;
  for (let step = 0; step <= steps; step++) {
    const batch = batchOf(first + step);
    const next =
      step < steps
        ? await trainStep({
            model,
            optimizer,
            nextBatch: async () => batch,
            accumulation: 1,
            lr: 1e-4,
            clip: 1,
            watch,
          })
        : null;
    if (running) {
      const { loss, at } = await running.figures;
      times.push(at - last);
      losses.push(loss);
      last = at;
    }
    running = next;
  }
  return { times, losses };
}

/** Runs two kinds of steps in turns on two equal models, or on one. */
async function inTurns(kinds) {
  const results = {};
  for (const name of Object.keys(kinds)) results[name] = { times: [], losses: [] };
  const model = await makeModel("fp8");
  const optimizer = new AdamW(model.store, { weightDecay: 0.1 });
  for (let round = 0; round <= rounds; round++) {
    for (const [name, prepare] of Object.entries(kinds)) {
      const watch = prepare(model);
      const { times, losses } = await run(model, optimizer, 100 * round, watch);
      if (round === 0) continue; // to warm up
      results[name].times.push(...times.slice(1));
      results[name].losses.push(...losses);
    }
  }
  optimizer.dispose();
  model.dispose();
  return Object.fromEntries(
    Object.entries(results).map(([name, { times }]) => [
      name,
      { ms: median(times), fastest: Math.min(...times), slowest: Math.max(...times) },
    ]),
  );
}

/** Losses of fresh models, from equal weights on equal batches. */
async function lossesWith(fast) {
  fp8Choices.fast.weightGradient = fast;
  const model = await makeModel("fp8");
  const optimizer = new AdamW(model.store, { weightDecay: 0.1 });
  const { losses } = await run(model, optimizer, 0);
  optimizer.dispose();
  model.dispose();
  fp8Choices.fast.weightGradient = false;
  return losses;
}

async function optimizers() {
  const result = {};
  for (const [name, make] of [
    ["adamw", (model) => new AdamW(model.store)],
    ["muon", (model) => new Muon(model.store, { exclude: [model.headWeight] })],
  ]) {
    const model = await makeModel("bf16");
    const optimizer = make(model);
    const times = [];
    for (let step = 0; step < steps; step++) {
      await scope(async () => {
        const few = { ...batchOf(step), count: 1 };
        few.inputs = few.inputs.slice(0, length);
        few.targets = few.targets.slice(0, length);
        const loss = model.loss(batchTensors(few, device));
        loss.backward();
        await synchronize(device);
        const start = performance.now();
        optimizer.step({ lr: 1e-4, clip: 1, loss });
        const enqueued = performance.now() - start;
        await synchronize(device);
        times.push({ ms: performance.now() - start, enqueued });
      });
    }
    result[name] = {
      ms: median(times.slice(1).map(({ ms }) => ms)),
      enqueuingMs: median(times.slice(1).map(({ enqueued }) => enqueued)),
      bytes: memory(device).bytes,
    };
    optimizer.dispose();
    model.dispose();
  }
  const flops = optimizerFlops({ model: shape, optimizer: { type: "muon" } });
  const seconds = (result.muon.ms - result.adamw.ms) / 1000;
  return { ...result, teraflop: flops / 1e12, teraflops: flops / 1e12 / seconds };
}

const plain = () => {
  fp8Choices.fast.weightGradient = false;
  return null;
};
const result = {
  benchmark: "gpu-choices",
  date: new Date().toISOString(),
  settings: values,
  fast: await inTurns({
    plain,
    fast: () => {
      fp8Choices.fast.weightGradient = true;
      return null;
    },
  }),
  watch: await inTurns({ plain, watched: (model) => model.fp8Monitor }),
  losses: { plain: await lossesWith(false), fast: await lossesWith(true) },
  optimizers: await optimizers(),
};
console.log(JSON.stringify(result, null, 1));
if (values.json) writeFileSync(values.json, `${JSON.stringify(result, null, 1)}\n`);
