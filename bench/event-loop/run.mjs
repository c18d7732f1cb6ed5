// Measures how late a 10 ms timer fires in a process that trains, validates, saves or generates,
// and JavaScript's time per step. The figures tell whether a server, signals and timers can run in
// the process that trains.
//
//   node bench/event-loop/run.mjs [--preset tinyllama-1.1b] [--micro-batch 16,4,1] [--accumulation 4] [--sequence-length N]
//     [--modes training,validating,saving,generating] [--nproc 1,2] [--parallel replicated] [--steps 8] [--warmup 2]
//     [--batches 20] [--tokens 64] [--precision bf16|fp32] [--device cuda|cpu] [--folder FOLDER] [--json FILE]
//
// Each measurement is a run of the Trainer in processes of its own, started as `llamaforge launch`
// starts them. --batches: number of validation batches; --tokens: length of a sample. `saving`
// writes two checkpoints (15.4 GB each for TinyLlama-1.1B) below --folder. The goals: at most 50 ms
// late, with a median below 2 ms.
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { syntheticDataset } from "../../dist/bench/synthetic-data.js";
import { launch } from "../../dist/dist/launch.js";
import { presets } from "../../dist/model/presets.js";

const { values } = parseArgs({
  options: {
    preset: { type: "string", default: "tinyllama-1.1b" },
    "micro-batch": { type: "string", default: "16,4,1" },
    accumulation: { type: "string", default: "4" },
    "sequence-length": { type: "string" },
    modes: { type: "string", default: "training,validating,saving,generating" },
    nproc: { type: "string", default: "1" },
    parallel: { type: "string", default: "replicated" },
    steps: { type: "string", default: "8" },
    warmup: { type: "string", default: "2" },
    batches: { type: "string", default: "20" },
    tokens: { type: "string", default: "64" },
    precision: { type: "string", default: "bf16" },
    device: { type: "string", default: "cuda" },
    folder: { type: "string", default: tmpdir() },
    json: { type: "string" },
  },
});
const goal = { maxMs: 50, medianMs: 2 };
const model = presets[values.preset];
if (!model) throw new Error(`--preset: expected one of ${Object.keys(presets).join(", ")}`);
const known = ["training", "validating", "saving", "generating"];
const modes = values.modes.split(",");
const unknown = modes.find((mode) => !known.includes(mode));
if (unknown !== undefined) throw new Error(`--modes: expected ${known.join(",")}, got ${unknown}`);
const numbers = (text) => text.split(",").map(Number);
const sequenceLength = Number(values["sequence-length"] ?? model.contextLength);
/** Tokens of all steps at one window per micro-batch. */
const tokensOfSteps =
  (Number(values.steps) + Number(values.warmup)) * Number(values.accumulation) * sequenceLength;
const rankFile = fileURLToPath(new URL("rank.mjs", import.meta.url));
mkdirSync(values.folder, { recursive: true });
const folder = mkdtempSync(join(values.folder, "llamaforge-event-loop-"));

/** Runs once in processes of its own. @returns the measurements of each rank */
async function measure(data, microBatch, ranks, mode) {
  const place = mkdtempSync(join(folder, `${mode}-`));
  process.env.EVENT_LOOP_BENCH = JSON.stringify({
    ...{ mode, preset: values.preset, folder: place, data, microBatch, sequenceLength },
    ...{ device: values.device, parallel: values.parallel, precision: values.precision },
    ...{ accumulation: Number(values.accumulation), recompute: "none" },
    ...{ steps: Number(values.steps), warmup: Number(values.warmup) },
    ...{ batches: Number(values.batches), tokens: Number(values.tokens) },
  });
  const onReport = (message) => console.error(message);
  const code = await launch({ processes: ranks, command: [rankFile], onReport });
  if (code !== 0) throw new Error(`${mode} with micro-batch ${microBatch} ended with ${code}`);
  const results = Array.from({ length: ranks }, (_, rank) =>
    JSON.parse(readFileSync(join(place, `rank-${rank}.json`), "utf8")),
  );
  rmSync(place, { recursive: true, force: true });
  return results;
}

const header = ["ranks", "batch", "mode", "ms/step", "JS ms/step", "median", "p99", "max late"];
const widths = [5, 5, 10, 9, 10, 8, 9, 9, 7, 9];
const line = (cells) => cells.map((cell, i) => String(cell).padStart(widths[i])).join(" ");
const rows = [];
const said = [line([...header, "ticks", "goals"])];
try {
  const data = await syntheticDataset(folder, {
    vocabSize: model.vocabSize,
    tokens: tokensOfSteps * Math.max(...numbers(values["micro-batch"])),
    validationFraction: 0.2,
  });
  for (const ranks of numbers(values.nproc)) {
    for (const microBatch of numbers(values["micro-batch"])) {
      for (const mode of modes) {
        const results = await measure(data, microBatch, ranks, mode);
        // The worst rank counts.
        const worst = (value) => Math.max(...results.map(value));
        const { median, p99, max } = {
          median: worst(({ lateMs }) => lateMs.median),
          p99: worst(({ lateMs }) => lateMs.p99),
          max: worst(({ lateMs }) => lateMs.max),
        };
        const met = max <= goal.maxMs && median < goal.medianMs;
        rows.push({ ranks, microBatch, mode, met, results });
        const stepMs = worst((result) => result.stepMs);
        const javascript = worst((result) => result.javascriptMsPerStep);
        const share = Math.min(...results.map((result) => result.share));
        const percent = `${(100 * share).toFixed(0)}%`;
        const cells = [ranks, microBatch, mode, stepMs, javascript, median, p99, max, percent];
        said.push(line([...cells, met ? "met" : "missed"]));
        console.error(said.at(-1));
      }
    }
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
const result = {
  benchmark: "event-loop",
  date: new Date().toISOString(),
  device: rows[0]?.results[0].device,
  node: process.version,
  options: { ...values, json: undefined, folder: undefined },
  goal,
  rows,
};
if (values.json) {
  mkdirSync(dirname(values.json), { recursive: true });
  writeFileSync(values.json, `${JSON.stringify(result, null, 2)}\n`);
}
console.log(said.join("\n"));
console.log(`late in ms; goals: at most ${goal.maxMs} ms late, median below ${goal.medianMs} ms`);
