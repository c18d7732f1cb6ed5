// Compares losses of runs that differ in one option, from equal weights on equal batches, at the
// same time on a device each.
//
//   node bench/loss/run.mjs --data FOLDER --out FOLDER [--runs bf16,fp8] [--devices cuda:0,cuda:1]
//     [--preset tinyllama-120m] [--tokens 80e6] [--sequence-length 2048] [--micro-batch 16]
//     [--accumulation 2] [--peak-lr 4e-4] [--warmup 200] [--evaluations 20] [--validation 30]
//     [--until STEP] [--json FILE]
//
// --data: a data set of `prepare`, with a part held out. --runs: names of `runs` below. --until: ends
// all runs there, without a change of their schedules. The result
// has each run's validation losses, its training losses (means of ten steps), its speed, and for
// runs in fp8 the figures of their tensors. Exit code 1 if a run fails.
import { spawn } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { median } from "../../dist/bench/environment.js";

const { values } = parseArgs({
  options: {
    data: { type: "string" },
    out: { type: "string" },
    runs: { type: "string", default: "bf16,fp8" },
    devices: { type: "string", default: "cuda:0,cuda:1" },
    preset: { type: "string", default: "tinyllama-120m" },
    tokens: { type: "string", default: "80e6" },
    "sequence-length": { type: "string", default: "2048" },
    "micro-batch": { type: "string", default: "16" },
    accumulation: { type: "string", default: "2" },
    "peak-lr": { type: "string", default: "4e-4" },
    warmup: { type: "string", default: "200" },
    evaluations: { type: "string", default: "20" },
    validation: { type: "string", default: "30" },
    until: { type: "string" },
    json: { type: "string" },
    seed: { type: "string", default: "3407" },
  },
});
if (!values.data || !values.out) throw new Error("--data and --out are needed");

/** Options that make each run differ from the others. */
const runs = {
  bf16: { precision: "bf16" },
  fp8: { precision: "fp8" },
  muon: { precision: "bf16", optimizer: { type: "muon" } },
  "muon-fp8": { precision: "fp8", optimizer: { type: "muon" } },
  // Gradients with 3 bits and 15 binades, instead of 2 and 30.
  "fp8-e4m3": { precision: "fp8", choices: { gradient: "f8e4m3" } },
  // Micro-batches of half the size: the same sums in another order, which shows what chance does.
  "bf16-again": { precision: "bf16", halves: true },
};

const number = (name) => Number(values[name]);
const dataset = JSON.parse(readFileSync(join(values.data, "dataset.json"), "utf8"));
const there = dataset.splits.train.tokens;
const tokensPerStep = number("sequence-length") * number("micro-batch") * number("accumulation");
// No token is read twice.
const steps = Math.floor(Math.min(number("tokens"), there) / tokensPerStep);
const recipe = {
  seed: number("seed"),
  steps,
  model: { preset: values.preset },
  data: { train: { [values.data]: 1 }, sequenceLength: number("sequence-length") },
  batch: { microBatch: number("micro-batch"), accumulation: number("accumulation") },
  optimizer: {
    peakLr: number("peak-lr"),
    warmupSteps: Math.min(number("warmup"), Math.floor(steps / 4)),
  },
  evaluate: {
    every: Math.max(1, Math.floor(steps / number("evaluations"))),
    batches: number("validation"),
  },
};

function train(name, device) {
  const special = runs[name];
  if (!special) throw new Error(`--runs: expected names of ${Object.keys(runs)}, got ${name}`);
  const out = join(values.out, name);
  const { choices, halves, ...options } = special;
  const config = { ...recipe, ...options, name, out, device };
  config.optimizer = { ...recipe.optimizer, ...special.optimizer };
  if (halves) {
    const { microBatch, accumulation } = recipe.batch;
    config.batch = { microBatch: microBatch / 2, accumulation: accumulation * 2 };
    config.evaluate = { ...recipe.evaluate, batches: 2 * recipe.evaluate.batches };
  }
  const until = Number(values.until ?? steps);
  const child = spawn(process.execPath, [fileURLToPath(new URL("train.mjs", import.meta.url))], {
    stdio: ["ignore", "pipe", "inherit"],
    env: { ...process.env, LOSS_RECIPE: JSON.stringify({ recipe: config, until, choices }) },
  });
  let text = "";
  child.stdout.on("data", (data) => {
    text += data;
  });
  return new Promise((resolve, reject) => {
    child.on("close", (code) => {
      if (code !== 0) return reject(new Error(`${name} ended with ${code}`));
      resolve({ name, out, ...JSON.parse(text.trim().split("\n").at(-1)) });
    });
  });
}

const round = (x, digits = 6) => (x === null ? null : Number(x.toPrecision(digits)));

/** The figures of a run, from its records. */
function figuresOf({ name, out, notices }) {
  const records = readFileSync(join(out, "metrics.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  const losses = [];
  for (let first = 0; first + 10 <= records.length; first += 10) {
    const part = records.slice(first, first + 10);
    losses.push(round(part.reduce((sum, { loss }) => sum + loss, 0) / part.length));
  }
  return {
    name,
    options: runs[name],
    notices,
    tokensPerSecond: Math.round(median(records.slice(5).map((step) => step.tokensPerSecond))),
    skipped: records.filter(({ skipped }) => skipped).length,
    largestGradNorm: round(Math.max(...records.map(({ gradNorm }) => gradNorm)), 4),
    validation: records
      .filter(({ validation }) => validation)
      .map(({ step, tokens, validation }) => ({ step, tokens, loss: round(validation.loss) })),
    lossOfTenSteps: losses,
    fp8: records.filter(({ fp8 }) => fp8).map(({ step, fp8 }) => ({ step, ...fp8 })),
  };
}

const names = values.runs.split(",");
const devices = values.devices.split(",");
const results = [];
let failed = false;
for (let first = 0; first < names.length; first += devices.length) {
  const together = names.slice(first, first + devices.length);
  const ended = await Promise.allSettled(together.map((name, i) => train(name, devices[i])));
  for (const one of ended) {
    if (one.status === "fulfilled") results.push(figuresOf(one.value));
    else {
      failed = true;
      console.error(one.reason.message);
    }
  }
}
const [base, ...others] = results;
for (const other of others) {
  const apart = other.validation.map(({ loss }, i) => loss / base.validation[i].loss - 1);
  const lastFifth = apart.slice(-Math.max(1, Math.floor(apart.length / 5)));
  other.validationApart = apart.map((share) => round(share, 3));
  other.lastFifthApart = round(lastFifth.reduce((a, b) => a + b, 0) / lastFifth.length, 3);
  other.largestOfLastFifth = round(Math.max(...lastFifth.map(Math.abs)), 3);
  const percent = (share) => `${(100 * share).toFixed(3)}%`;
  console.log(
    `${other.name} beside ${base.name}: validation over the last fifth ${percent(other.lastFifthApart)} apart on ` +
      `average, ${percent(other.largestOfLastFifth)} at most; ${other.tokensPerSecond} and ${base.tokensPerSecond} tokens/s`,
  );
}
const result = {
  benchmark: "loss",
  date: new Date().toISOString(),
  recipe: { ...recipe, data: { sequenceLength: recipe.data.sequenceLength } },
  tokensPerStep,
  data: { tokens: there, validationTokens: dataset.splits.validation?.tokens ?? 0 },
  runs: results,
};
if (values.json) writeFileSync(values.json, `${JSON.stringify(result)}\n`);
if (failed) process.exitCode = 1;
