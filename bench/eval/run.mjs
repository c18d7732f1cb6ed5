// Measures evaluate(): seconds and requests per second of each task, with a model of random weights.
//
//   node bench/eval/run.mjs --data ROWS --tokenizer FOLDER [--tasks hellaswag,...] [--preset tinyllama-1.1b]
//     [--device cuda:0] [--precision bf16|fp32] [--batch auto|N] [--limit N] [--model FOLDER] [--out FILE]
//
// --tasks: the seven commonsense tasks by default. Each is timed by itself, after one question that
// makes the kernels ready. --model: writes the model there as a Hugging Face folder, for peer.py.
import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { benchEnvironment } from "../../dist/bench/environment.js";
import {
  createModel,
  evaluate,
  memory,
  parseDevice,
  presets,
  saveModel,
  Tokenizer,
} from "../../dist/index.js";
import { describeDevice } from "../../dist/train/machine.js";

const { values } = parseArgs({
  options: {
    data: { type: "string" },
    tokenizer: { type: "string" },
    tasks: {
      type: "string",
      default: "hellaswag,openbookqa,winogrande,arc_challenge,arc_easy,boolq,piqa",
    },
    preset: { type: "string", default: "tinyllama-1.1b" },
    device: { type: "string", default: "cuda:0" },
    precision: { type: "string", default: "bf16" },
    batch: { type: "string", default: "auto" },
    limit: { type: "string" },
    model: { type: "string" },
    out: { type: "string" },
  },
});
if (values.data === undefined || values.tokenizer === undefined) {
  console.error("usage: node bench/eval/run.mjs --data ROWS --tokenizer FOLDER [options]");
  process.exit(2);
}
const device = parseDevice(values.device);
const tokenizer = await Tokenizer.load(values.tokenizer);
const dtype = values.precision === "bf16" ? "bf16" : "f32";
const model = await createModel(presets[values.preset], { device, dtype, seed: 1 });
if (values.model !== undefined) await saveModel(values.model, model, { tokenizer });

const options = {
  tokenizer,
  data: values.data,
  bootstrap: 0,
  batch: values.batch === "auto" ? "auto" : Number(values.batch),
};
const rows = [];
for (const task of values.tasks.split(",")) {
  await evaluate(model, [task], { ...options, limit: 1 });
  const start = performance.now();
  const limit = values.limit === undefined ? {} : { limit: Number(values.limit) };
  const result = await evaluate(model, [task], { ...options, ...limit, logSamples: true });
  const seconds = (performance.now() - start) / 1000;
  const samples = Object.values(result.samples).flat();
  const requests = samples.reduce(
    (sum, { arguments: asked }) => sum + Object.keys(asked).length,
    0,
  );
  rows.push({
    task,
    questions: samples.length,
    requests,
    seconds,
    requestsPerSecond: requests / seconds,
  });
}
const total = rows.reduce(
  (sum, { requests, seconds }) => ({
    requests: sum.requests + requests,
    seconds: sum.seconds + seconds,
  }),
  { requests: 0, seconds: 0 },
);
for (const { task, questions, requests, seconds, requestsPerSecond } of [
  ...rows,
  { task: "all", questions: "", ...total, requestsPerSecond: total.requests / total.seconds },
]) {
  const figures = [questions, requests, seconds.toFixed(2), requestsPerSecond.toFixed(0)];
  console.log([task.padEnd(16), ...figures.map((figure) => String(figure).padStart(9))].join(" "));
}
const report = {
  ...benchEnvironment(device, await describeDevice(device)),
  benchmark: "eval",
  model: values.preset,
  precision: values.precision,
  batch: values.batch,
  peakBytes: memory(device).peakBytes,
  rows,
  total,
};
if (values.out !== undefined) writeFileSync(values.out, `${JSON.stringify(report, null, 2)}\n`);
model.dispose();
