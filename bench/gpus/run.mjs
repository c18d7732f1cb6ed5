// Compares training on several GPUs of this host with training on one. For each number of ranks and
// each strategy it measures the speed of a rank, its memory, and the communication that a step
// waits for; it compares the losses with those of one rank that takes the same windows, and checks
// whether a second run has equal bits. If there are fewer GPUs than ranks, ranks share them: the
// checks are then valid, but the times mean little.
//
//   node bench/gpus/run.mjs [--nproc 2,4,8] [--parallel replicated,zero1,full_shard,hybrid_shard] [--preset tinyllama-1.1b]
//     [--micro-batch 16] [--accumulation 1] [--sequence-length 2048] [--steps 10] [--warmup 3] [--precision bf16|fp8|fp32]
//     [--recompute none|ffn|block] [--reduce fp32|bf16] [--data FOLDER] [--repeat 2] [--bound 2e-3] [--kill]
//     [--peer PYTHON] [--peer-parallel full_shard,...] [--timeline FOLDER] [--json FILE] [--device cuda|cpu]
//
// --accumulation: micro-batches of each rank. One rank runs twice for comparison: with the work of
// one rank, whose speed is the basis of the efficiency, and with the work of all ranks, for its
// losses. --kill: at the end a rank is killed, and the others must end with 6 and name it. --peer:
// also runs PyTorch, with the strategies of --peer-parallel, or all that it has. --timeline: writes
// a Chrome trace of each run there, and a picture of one step. Exit code 1 if losses differ by more
// than the bound, bits differ, or a rank fails.
import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { median } from "../../dist/bench/environment.js";
import { chromeTrace } from "../../dist/dist/timeline.js";
import { presets } from "../../dist/model/presets.js";
import { gpusOfHost, RankProcesses } from "./processes.mjs";
import { timelineSvg } from "./timeline-svg.mjs";

const { values } = parseArgs({
  options: {
    nproc: { type: "string", default: "2" },
    parallel: { type: "string", default: "replicated,zero1,full_shard,hybrid_shard" },
    preset: { type: "string", default: "tinyllama-120m" },
    "micro-batch": { type: "string", default: "4" },
    accumulation: { type: "string", default: "1" },
    "sequence-length": { type: "string" },
    steps: { type: "string", default: "10" },
    warmup: { type: "string", default: "3" },
    precision: { type: "string", default: "bf16" },
    recompute: { type: "string", default: "none" },
    reduce: { type: "string", default: "fp32" },
    data: { type: "string" },
    repeat: { type: "string", default: "2" },
    bound: { type: "string" },
    kill: { type: "boolean", default: false },
    peer: { type: "string" },
    "peer-parallel": { type: "string" },
    timeline: { type: "string" },
    json: { type: "string" },
    device: { type: "string", default: "cuda" },
    timeout: { type: "string", default: "120" },
  },
});
const shape = presets[values.preset];
if (!shape) throw new Error(`--preset: expected one of ${Object.keys(presets).join(", ")}`);
const sequenceLength = Number(values["sequence-length"] ?? shape.contextLength);
const repeat = Number(values.repeat);
/**
 * Relative bound on each step's loss. f32 sums have another order; in bf16 a weight may also round
 * to a neighbouring value, and in fp8 a number to one that lies 32 times farther away.
 */
const bound = Number(values.bound ?? { fp32: 2e-5, bf16: 2e-3, fp8: 5e-3 }[values.precision]);
const settings = {
  preset: values.preset,
  microBatch: Number(values["micro-batch"]),
  accumulation: Number(values.accumulation),
  sequenceLength,
  steps: Number(values.steps),
  warmup: Number(values.warmup),
  tracedSteps: 2,
  precision: values.precision,
  recompute: values.recompute,
  reduce: values.reduce,
  data: values.data,
  device: values.device,
  timeoutSeconds: Number(values.timeout),
};
const host = settings.device === "cpu" ? { gpus: 0, name: "cpu" } : gpusOfHost();
const processes = new RankProcesses(host.gpus, settings);

/**
 * The largest relative difference of the losses, over the steps that the single rank has run too.
 */
const apart = (losses, alone) =>
  Math.max(...alone.map((loss, i) => Math.abs(losses[i] / loss - 1)));

/** Tokens per second of one rank. */
const speed = ({ times }) =>
  (settings.microBatch * settings.accumulation * sequenceLength) / (median(times) / 1000);

let wrong = 0;
function check(holds, what) {
  if (holds) return;
  wrong++;
  console.log(`WRONG: ${what}`);
}

const columns = [5, 14, 9, 7, 9, 9, 9, 9, 8, 10, 5];
const print = (cells) =>
  console.log(cells.map((cell, i) => String(cell).padStart(columns[i])).join(" "));
const gib = (bytes) => (bytes / 2 ** 30).toFixed(2);

/** @returns the figures of one number of ranks and one strategy, for the table and the file */
async function measure(ranks, parallel, base, alone) {
  const more = { parallel, ...(parallel === "hybrid_shard" && { shardSize: ranks / 2 }) };
  const runs = [];
  for (let i = 0; i < repeat; i++) runs.push(await processes.run(ranks, more));
  const what = `${ranks} ranks, ${parallel}`;
  check(
    runs.every(({ alike }) => alike),
    `${what}: losses or weights differ between the ranks`,
  );
  const { first, results, seconds } = runs[0];
  const same = runs.every(
    (run) =>
      run.first.weights === first.weights &&
      run.first.losses.every((l, i) => l === first.losses[i]),
  );
  check(same, `${what}: a second run has other bits`);
  const difference = apart(first.losses, alone.losses);
  check(difference < bound, `${what}: losses differ by ${difference}, allowed are ${bound}`);
  const { times, traced, sentBytes, backend } = first;
  const peakBytes = results.map((result) => result.peakBytes);
  const tokensPerSecond = speed(first);
  print([
    ranks,
    parallel,
    tokensPerSecond.toFixed(0),
    `${((100 * tokensPerSecond) / speed(base)).toFixed(1)}%`,
    median(times).toFixed(1),
    traced.communicationMs.toFixed(1),
    traced.exposedMs.toFixed(1),
    gib(Math.max(...peakBytes)),
    (sentBytes / 1e6).toFixed(0),
    difference.toExponential(1),
    repeat > 1 ? (same ? "yes" : "NO") : "-",
  ]);
  if (values.timeline) writeTimelines(ranks, parallel, results);
  return {
    ranks,
    parallel,
    backend,
    sharedGpu: processes.share(ranks),
    tokensPerSecondPerRank: tokensPerSecond,
    efficiency: tokensPerSecond / speed(base),
    stepMs: { median: median(times), fastest: Math.min(...times), slowest: Math.max(...times) },
    traced,
    peakBytes,
    sentBytesPerStep: sentBytes,
    largestLossDifference: difference,
    losses: first.losses,
    gradNorms: first.gradNorms,
    sameBits: repeat > 1 ? same : null,
    weights: first.weights,
    seconds,
  };
}

function writeTimelines(ranks, parallel, results) {
  mkdirSync(values.timeline, { recursive: true });
  const name = join(values.timeline, `${values.preset}-${ranks}-${parallel}`);
  const timelines = results.map(({ timeline }) => timeline);
  writeFileSync(`${name}.json`, JSON.stringify(chromeTrace(timelines)));
  const title = `${values.preset}, ${ranks} ranks, ${parallel}: a step of rank 0`;
  writeFileSync(`${name}.svg`, timelineSvg(timelines[0], title));
}

/** Kills the last rank after two steps. */
async function kill(ranks, parallel) {
  const all = await processes.start(ranks, { parallel, steps: 1_000_000 });
  const victim = all.at(-1);
  const killed = new Promise((resolve) => {
    victim.onStep = (step) => {
      if (step !== 2) return;
      victim.child.kill("SIGKILL");
      resolve(performance.now());
    };
  });
  const died = victim.ended.then(({ said }) => {
    throw new Error(`the rank that was to be killed ended before: ${said}`);
  });
  const at = await Promise.race([killed, died]);
  const others = await Promise.all(all.slice(0, -1).map((rank) => rank.ended));
  const seconds = (performance.now() - at) / 1000;
  for (const { code, signal, said } of others) {
    check(
      code === 6 && said.includes(`rank ${ranks - 1}`),
      `after the death of rank ${ranks - 1} another ended with ${code ?? signal}: ${said}`,
    );
  }
  console.log(
    `rank ${ranks - 1} of ${ranks} killed: the others ended ${seconds.toFixed(1)} s later with ` +
      `${others.map(({ code }) => code).join(", ")}`,
  );
  return { ranks, parallel, seconds, codes: others.map(({ code }) => code) };
}

/** Runs the equivalent training with PyTorch's FSDP2 or DDP, which measures itself. */
function peer(ranks, parallel) {
  const script = fileURLToPath(new URL("../peer/torch_fsdp.py", import.meta.url));
  const args = [
    ...["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", String(ranks), script],
    ...["--model", JSON.stringify(shape), "--parallel", parallel],
    ...["--sequence-length", String(sequenceLength), "--micro-batch", String(settings.microBatch)],
    ...["--accumulation", String(settings.accumulation), "--precision", settings.precision],
    ...["--steps", String(settings.steps), "--warmup", String(settings.warmup)],
    ...["--device", settings.device],
  ];
  const text = execFileSync(values.peer, args, {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit"],
    env: { ...process.env, NCCL_NVLS_ENABLE: process.env.NCCL_NVLS_ENABLE ?? "0" },
  });
  const result = JSON.parse(text.trim().split("\n").at(-1));
  console.log(
    `PyTorch ${result.version}, ${ranks} x ${parallel}: ${result.tokensPerSecond.toFixed(0)} tok/s of a rank, ` +
      `${gib(result.peakBytes ?? 0)} GiB`,
  );
  return { ranks, parallel, ...result };
}

const base = await processes.run(1);
console.log(
  `${values.preset}, ${values.precision}, ${settings.accumulation} x ${settings.microBatch} x ${sequenceLength} tokens of a rank; ` +
    `${host.gpus} x ${host.name}; losses may differ by ${bound}`,
);
print([
  ...["ranks", "parallel", "tok/s", "effic.", "step ms", "comm. ms", "exposed", "GiB", "MB sent"],
  ...["loss diff", "bits"],
]);
const { times, peakBytes } = base.first;
print([
  ...[1, "-", speed(base.first).toFixed(0), "100%", median(times).toFixed(1), "-", "-"],
  ...[gib(peakBytes), 0, "-", "-"],
]);
const result = {
  benchmark: "gpus",
  date: new Date().toISOString(),
  host,
  settings,
  bound,
  base: { tokensPerSecond: speed(base.first), ...base.first },
  runs: [],
  peers: [],
};
/** Runs one part and writes the file after it, so that a later part's failure loses nothing. */
async function part(what, measured) {
  try {
    await measured();
  } catch (error) {
    check(false, `${what}: ${error.message}`);
  }
  if (values.json) writeFileSync(values.json, `${JSON.stringify(result, null, 1)}\n`);
}

const sizes = values.nproc.split(",").map(Number);
const strategies = values.parallel.split(",");
for (const ranks of sizes.filter((size) => size > 1)) {
  // hybrid_shard needs two copies, each of them divided.
  const isPossible = (name) => name !== "hybrid_shard" || (ranks >= 4 && ranks % 2 === 0);
  await part(`${ranks} ranks`, async () => {
    const alone = await processes.run(1, { accumulation: settings.accumulation * ranks });
    for (const parallel of strategies.filter(isPossible)) {
      await part(`${ranks} ranks, ${parallel}`, async () => {
        result.runs.push(await measure(ranks, parallel, base.first, alone.first));
      });
    }
  });
  if (!values.peer || processes.share(ranks)) continue;
  const peers = values["peer-parallel"]?.split(",") ?? strategies;
  for (const parallel of peers.filter((name) => name !== "hybrid_shard")) {
    await part(`PyTorch, ${ranks} x ${parallel}`, () => {
      result.peers.push(peer(ranks, parallel));
    });
  }
}
if (values.kill) {
  const ranks = sizes.at(-1);
  await part("the death of a rank", async () => {
    result.killed = await kill(ranks, strategies[0]);
  });
}
console.log(wrong === 0 ? "all as expected" : `${wrong} wrong`);
if (wrong > 0) process.exitCode = 1;
