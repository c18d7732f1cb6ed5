// Measures training speed on the CPU, ours next to PyTorch's in one run, and the speed of each
// kernel:
//
//   npm run bench:cpu -- [--python python3] [--threads N] [--rounds 2] [--out bench/results/cpu.json]
//
// The model is that of bench/torch_cpu.py: hidden 256, 6 layers, 4 query / 1 KV heads of 64, FFN
// 704, vocabulary 4096, batch 8 x 256, AdamW, clipping by the global norm. --python names an
// interpreter that has torch; without it only our speed is measured. A step is timed from the end
// of the previous step to the end of its own optimizer step. The reported figure is the median of
// ten steps after three warm-up steps. Rounds alternate between the two, so that a change of the
// machine's clock shows in both.
// With LLAMAFORGE_CPU_ISA=x86-64-v3 PyTorch and its libraries are held to AVX2 as well.
import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { cpus, loadavg } from "node:os";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import {
  AdamW,
  attention,
  buildInfo,
  Llama,
  linear,
  linearCrossEntropy,
  llamaConfig,
  rand,
  randn,
  rmsNorm,
  scope,
  setThreads,
  swiglu,
  synchronize,
  tensor,
  trainStep,
} from "../dist/index.js";

const { values: options } = parseArgs({
  options: {
    python: { type: "string" },
    threads: { type: "string" },
    rounds: { type: "string", default: "2" },
    out: { type: "string" },
  },
});
if (options.threads) setThreads(Number(options.threads));
const threads = buildInfo().threads;

const batch = 8;
const time = 256;
const config = llamaConfig({
  vocabSize: 4096,
  hiddenSize: 256,
  intermediateSize: 704,
  layers: 6,
  heads: 4,
  kvHeads: 1,
  contextLength: time,
  ropeTheta: 10_000,
  rmsNormEps: 1e-5,
  tieEmbeddings: false,
});
const parametersInProducts = 5_275_648; // weights that each token is multiplied with
const flopsPerToken = 6 * parametersInProducts + 6 * config.layers * config.hiddenSize * time;

const median = (numbers) => [...numbers].sort((a, b) => a - b)[Math.floor(numbers.length / 2)];

/** Tokens per second over whole training steps. */
async function trainingSpeed(dtype) {
  const model = await Llama.create(config, { dtype, seed: 0 });
  const optimizer = new AdamW(model.store, { beta1: 0.9, beta2: 0.95, weightDecay: 0.1 });
  const ids = Int32Array.from({ length: batch * (time + 1) }, (_, i) => (i * 2654435761) % 4096);
  const rows = (from) =>
    Int32Array.from(
      { length: batch * time },
      (_, i) => ids[Math.floor(i / time) * (time + 1) + (i % time) + from],
    );
  const inputs = rows(0);
  const targets = rows(1);
  const times = [];
  for (let step = 0; step < 13; step++) {
    const started = performance.now();
    const { figures } = await trainStep({
      model,
      optimizer,
      nextBatch: async () => ({ inputs, targets, count: batch }),
      accumulation: 1,
      lr: 1e-3,
      clip: 1,
    });
    const { loss } = await figures;
    if (!Number.isFinite(loss)) throw new Error(`the loss is ${loss}`);
    if (step >= 3) times.push(performance.now() - started);
  }
  optimizer.dispose();
  model.dispose();
  return (batch * time) / (median(times) / 1000);
}

/** Settings that hold PyTorch to the instructions that our kernels use. */
const peerSettings =
  buildInfo().instructionSet === "x86-64-v3"
    ? { ATEN_CPU_CAPABILITY: "avx2", ONEDNN_MAX_CPU_ISA: "AVX2", MKL_ENABLE_INSTRUCTIONS: "AVX2" }
    : {};

/** This process's environment with the peer's settings; settings of OpenBLAS that a machine came with are left out. */
function peerEnvironment() {
  const inherited = Object.entries(process.env).filter(([name]) => !name.startsWith("OPENBLAS_"));
  return { ...Object.fromEntries(inherited), ...peerSettings };
}

/** PyTorch's figures by variant, e.g. `compiled bf16`. */
function peerSpeeds(python) {
  const script = fileURLToPath(new URL("torch_cpu.py", import.meta.url));
  const text = execFileSync(python, [script, String(threads)], {
    encoding: "utf8",
    env: peerEnvironment(),
    stdio: ["ignore", "pipe", "inherit"],
  });
  const speeds = {};
  for (const [, variant, figure] of text.matchAll(/^(.+?): ([\d,]+) tok\/s$/gm)) {
    speeds[variant.replace(/\s+/g, " ")] = Number(figure.replaceAll(",", ""));
  }
  if (Object.keys(speeds).length === 0) throw new Error(`${python} printed no figures:\n${text}`);
  return speeds;
}

/** Milliseconds of the work that `enqueue` puts on the stream: the median over batches of calls. */
async function timed(enqueue) {
  const samples = [];
  for (let sample = 0; sample < 7; sample++) {
    await synchronize();
    const started = performance.now();
    const calls = 10;
    for (let call = 0; call < calls; call++) scope(() => void enqueue());
    await synchronize();
    if (sample >= 2) samples.push((performance.now() - started) / calls);
  }
  return median(samples);
}

/**
 * Times forward, and forward with backward, of the most expensive operations. FLOPs count the
 * causal half only.
 */
async function kernelFigures(dtype) {
  const rows = batch * time;
  const figures = [];
  const add = (name, ms, flops) => figures.push({ name, ms, gflops: flops / ms / 1e6 });
  const leaf = (shape, seed) => randn(shape, { seed, dtype, std: 0.1, requiresGrad: true });
  /**
   * @param inForward number of products in the forward call, in units of one forward; the fused
   * head also makes its gradients there
   */
  const run = async (name, flopsForward, build, inForward = 1) => {
    add(`${name} forward`, await timed(build), inForward * flopsForward);
    const both = await timed(() => {
      const out = build();
      out.backward(out.size === 1 ? {} : { gradient: out.detach() });
    });
    add(`${name} forward + backward`, both, 3 * flopsForward);
  };
  for (const [name, out, inner] of [
    ["qkv", 384, 256],
    ["attention output", 256, 256],
    ["gate-up", 1408, 256],
    ["down", 256, 704],
    ["head", 4096, 256],
  ]) {
    const x = leaf([rows, inner], 1);
    const w = leaf([out, inner], 2);
    await run(`linear ${name} ${rows}x${inner}x${out}`, 2 * rows * out * inner, () => linear(x, w));
  }
  const qkv = leaf([batch, time, 6 * 64], 3);
  await run("attention", 2 * batch * 4 * time * time * 64, () =>
    attention(qkv, { heads: 4, kvHeads: 1 }),
  );
  const hidden = leaf([rows, 256], 4);
  const head = leaf([4096, 256], 5);
  const targets = tensor(Int32Array.from({ length: rows }, (_, i) => (i * 7919) % 4096));
  const headFlops = 2 * rows * 4096 * 256;
  await run(
    "head with cross-entropy",
    headFlops,
    () => linearCrossEntropy(hidden, head, targets),
    3,
  );
  const gateUp = leaf([rows, 1408], 6);
  await run("swiglu", 6 * rows * 704, () => swiglu(gateUp));
  const scale = rand([256], { seed: 7, dtype, low: 0.5, high: 1.5, requiresGrad: true });
  await run("rms norm", 4 * rows * 256, () => rmsNorm(hidden, scale));
  return figures;
}

const loadBefore = loadavg()[0];
const ours = { fp32: [], bf16: [] };
const peers = [];
for (let round = 0; round < Number(options.rounds); round++) {
  ours.fp32.push(await trainingSpeed("f32"));
  ours.bf16.push(await trainingSpeed("bf16"));
  if (options.python) peers.push(peerSpeeds(options.python));
}
const best = (list) => Math.max(...list);
const peerBest = best(peers.flatMap((speeds) => Object.values(speeds)));
/** NaN if the peer did not measure it. */
const peer = (variant) => best(peers.map((speeds) => speeds[variant] ?? Number.NaN));
const result = {
  date: new Date().toISOString().slice(0, 10),
  machine: `${cpus()[0].model.trim()}, ${threads} threads`,
  build: buildInfo(),
  node: process.version,
  loadBefore, // of the machine, over the minute before: above 0, other programs took part of it
  tokensPerSecond: { fp32: best(ours.fp32), bf16: best(ours.bf16), rounds: ours },
  gflops: {
    fp32: (best(ours.fp32) * flopsPerToken) / 1e9,
    bf16: (best(ours.bf16) * flopsPerToken) / 1e9,
  },
  ...(options.python && {
    pytorch: peers,
    pytorchSettings: peerSettings,
    ratios: {
      "bf16 to PyTorch's best": best(ours.bf16) / peerBest,
      "fp32 to PyTorch's best": best(ours.fp32) / peerBest,
      "fp32 to PyTorch's compiled fp32": best(ours.fp32) / peer("compiled fp32"),
    },
  }),
  kernels: { fp32: await kernelFigures("f32"), bf16: await kernelFigures("bf16") },
};

console.log(`${result.machine}, ${result.build.instructionSet}, Node ${result.node}`);
for (const [name, speed] of Object.entries(result.tokensPerSecond)) {
  if (name === "rounds") continue;
  console.log(
    `ours ${name}: ${Math.round(speed).toLocaleString("en-US")} tok/s, ${result.gflops[name].toFixed(0)} GFLOP/s`,
  );
}
for (const speeds of peers) console.log(`PyTorch: ${JSON.stringify(speeds)}`);
for (const [name, ratio] of Object.entries(result.ratios ?? {}))
  console.log(`${name}: ${ratio.toFixed(2)}`);
for (const dtype of ["fp32", "bf16"]) {
  for (const { name, ms, gflops } of result.kernels[dtype]) {
    console.log(
      `${dtype} ${name.padEnd(50)} ${ms.toFixed(3).padStart(8)} ms ${gflops.toFixed(0).padStart(6)} GFLOP/s`,
    );
  }
}
if (options.out) {
  mkdirSync(dirname(options.out), { recursive: true });
  writeFileSync(options.out, `${JSON.stringify(result, null, 2)}\n`);
}
