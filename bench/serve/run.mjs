// Measures how fast Fastify answers in a process that trains a model at the same time. This process
// sends requests to that one over HTTP, at a fixed rate whether or not earlier requests have been
// answered.
//
//   node bench/serve/run.mjs [--preset tinyllama-1.1b] [--micro-batch 16] [--accumulation 4] [--sequence-length N] [--steps 20]
//     [--warmup 2] [--rate 100] [--sample-every 10] [--precision bf16|fp32] [--device cuda|cpu] [--json FILE]
//
// Every other request asks for the latest step; the others have the tokenizer encode a text.
// --sample-every: the model also writes 32 tokens every so many steps. The goal: 99 of 100 requests
// are answered within 50 ms, and none is refused.
import { fork } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { Agent, request } from "node:http";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { syntheticDataset } from "../../dist/bench/synthetic-data.js";
import { presets } from "../../dist/model/presets.js";
import { spread } from "../event-loop/ticks.mjs";

const { values } = parseArgs({
  options: {
    preset: { type: "string", default: "tinyllama-1.1b" },
    "micro-batch": { type: "string", default: "16" },
    accumulation: { type: "string", default: "4" },
    "sequence-length": { type: "string" },
    steps: { type: "string", default: "20" },
    warmup: { type: "string", default: "2" },
    rate: { type: "string", default: "100" },
    "sample-every": { type: "string", default: "10" },
    precision: { type: "string", default: "bf16" },
    device: { type: "string", default: "cuda" },
    json: { type: "string" },
  },
});
const goal = { p99Ms: 50 };
const model = presets[values.preset];
if (!model) throw new Error(`--preset: expected one of ${Object.keys(presets).join(", ")}`);
const folder = mkdtempSync(join(tmpdir(), "llamaforge-serve-"));
const agent = new Agent({ keepAlive: true, maxSockets: Number.POSITIVE_INFINITY });
const text = JSON.stringify({ text: "We hold these truths to be self-evident. ".repeat(20) });

/** Sends one request. @returns milliseconds until its whole answer has arrived */
async function ask(port, number) {
  const started = performance.now();
  const [path, method] = number % 2 === 0 ? ["/status", "GET"] : ["/tokens", "POST"];
  const headers = { "content-type": "application/json" };
  const asked = request({ host: "127.0.0.1", port, path, method, agent, headers });
  asked.end(method === "POST" ? text : undefined);
  const [response] = await once(asked, "response");
  let body = "";
  for await (const piece of response.setEncoding("utf8")) body += piece;
  if (response.statusCode !== 200) throw new Error(`${path}: ${response.statusCode} ${body}`);
  JSON.parse(body);
  return performance.now() - started;
}

let server;
try {
  const windows = (Number(values.steps) + Number(values.warmup)) * Number(values["micro-batch"]);
  const sequenceLength = Number(values["sequence-length"] ?? model.contextLength);
  const tokens = windows * Number(values.accumulation) * sequenceLength;
  const data = await syntheticDataset(folder, { vocabSize: model.vocabSize, tokens });
  const { preset, precision, device, steps, warmup, accumulation } = values;
  const SERVE_BENCH = JSON.stringify({
    ...{ preset, precision, device, recompute: "none", data, out: join(folder, "run") },
    ...{ microBatch: Number(values["micro-batch"]), accumulation: Number(accumulation) },
    ...{
      steps: Number(steps),
      warmup: Number(warmup),
      sampleEvery: Number(values["sample-every"]),
    },
    sequenceLength,
  });
  server = fork(fileURLToPath(new URL("server.mjs", import.meta.url)), {
    env: { ...process.env, SERVE_BENCH },
  });
  const ended = once(server, "exit").then(([code, signal]) => {
    throw new Error(`the server ended with ${code ?? signal}`);
  });
  ended.catch(() => {});
  const [{ port }] = await Promise.race([once(server, "message"), ended]);
  let trained = null;
  const done = Promise.race([once(server, "message"), ended]).then(
    ([result]) => {
      trained = result;
    },
    (error) => {
      trained = error;
    },
  );
  const latencies = [];
  const failures = [];
  const asked = [];
  const everyMs = 1000 / Number(values.rate);
  const began = performance.now();
  for (let number = 0; trained === null; number++) {
    const answer = ask(port, number);
    asked.push(
      answer.then(
        (ms) => latencies.push(ms),
        (error) => failures.push(String(error.message)),
      ),
    );
    await sleep(Math.max(0, began + (number + 1) * everyMs - performance.now()));
  }
  await done;
  if (trained instanceof Error) throw trained;
  await Promise.all(asked);
  server.send("close");
  const { median, p99, max } = spread(latencies);
  const result = {
    benchmark: "serve",
    date: new Date().toISOString(),
    node: process.version,
    options: { ...values, json: undefined },
    goal,
    requests: latencies.length,
    failures: failures.length,
    latencyMs: { p50: median, p99, max },
    trained,
  };
  if (values.json) {
    mkdirSync(dirname(values.json), { recursive: true });
    writeFileSync(values.json, `${JSON.stringify(result, null, 2)}\n`);
  }
  const met = p99 <= goal.p99Ms;
  const { stepMs, javascriptMsPerStep, timer } = trained;
  const rows = [
    ["device", trained.device],
    [
      "training",
      `${trained.steps} steps of ${stepMs.toFixed(1)} ms, JavaScript ${javascriptMsPerStep.toFixed(1)} ms a step`,
    ],
    [
      "requests",
      `${latencies.length} answered, ${failures.length} failed${failures[0] ? `: ${failures[0]}` : ""}`,
    ],
    ["latency", `p50 ${median} ms, p99 ${p99} ms, max ${max} ms`],
    [
      "timer",
      `median ${timer.lateMs.median} ms late, p99 ${timer.lateMs.p99} ms, max ${timer.lateMs.max} ms`,
    ],
    ["goal", `p99 within ${goal.p99Ms} ms: ${met ? "met" : "missed"}`],
  ];
  for (const [name, said] of rows) console.log(`${name.padEnd(9)} ${said}`);
} finally {
  server?.kill();
  agent.destroy();
  rmSync(folder, { recursive: true, force: true });
}
