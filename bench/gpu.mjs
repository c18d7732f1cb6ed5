// What each kernel reaches on a GPU, beside its floor, at the sizes of TinyLlama-1.1B:
//
//   npm run bench:gpu -- [--device cuda:0] [--tokens 32768] [--out bench/results/gpu-kernels.json]
//
// A figure is the median of five runs of back-to-back calls between two waits, after one to warm up, on random numbers.
// The floor of a memory-bound kernel is its bytes over the rate of a large copy, which is measured first and last; `ratio`
// is floor / time. Products are given in TFLOP/s.
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { parseArgs } from "node:util";
import {
  add,
  argmax,
  cast,
  empty,
  full,
  linear,
  mul,
  noGrad,
  parseDevice,
  permute,
  rand,
  randn,
  rmsNorm,
  scope,
  setDefaultDevice,
  silu,
  slice,
  softmax,
  sum,
  swiglu,
  synchronize,
} from "../dist/index.js";
import { cudaInfo, native } from "../dist/native.js";

const { values: options } = parseArgs({
  options: {
    device: { type: "string", default: "cuda:0" },
    tokens: { type: "string", default: "32768" },
    out: { type: "string" },
  },
});
setDefaultDevice(parseDevice(options.device));
const tokens = Number(options.tokens);
const [hidden, ffn, vocab] = [2048, 5632, 32000];
const rows = [];

/** Seconds of one call. */
async function time(run) {
  const timed = async (count) => {
    await synchronize();
    const start = performance.now();
    for (let i = 0; i < count; i++) {
      const inside = scope();
      noGrad(run);
      inside[Symbol.dispose]();
    }
    await synchronize();
    return (performance.now() - start) / 1000 / count;
  };
  await timed(3);
  const count = Math.max(3, Math.min(1000, Math.ceil(0.03 / (await timed(3)))));
  const times = [];
  for (let i = 0; i < 5; i++) times.push(await timed(count));
  return times.sort((a, b) => a - b)[2];
}

async function memoryBound(name, bytes, run) {
  const seconds = await time(run);
  rows.push({
    name,
    microseconds: seconds * 1e6,
    gigabytesPerSecond: bytes / seconds / 1e9,
    bytes,
  });
}
async function product(name, flops, run) {
  const seconds = await time(run);
  rows.push({ name, microseconds: seconds * 1e6, teraflops: flops / seconds / 1e12 });
}

const n = tokens * hidden;
const [x, y] = [1, 2].map((seed) => randn([tokens, hidden], { seed, dtype: "bf16" }));
const wide = randn([tokens, hidden], { seed: 3 });
const target = empty([tokens, hidden], { dtype: "bf16" });
const wideTarget = empty([tokens, hidden]);
const gateUp = randn([tokens, 2 * ffn], { seed: 4, dtype: "bf16" });
const weight = full([hidden], 1, { dtype: "bf16" });
native.fill(target.native, 0);
native.fill(wideTarget.native, 0);

const copy = () => native.cast(x.native, target.native);
await memoryBound("copy bf16", 4 * n, copy);
await memoryBound("fill bf16", 2 * n, () => native.fill(target.native, 1));
await memoryBound("cast bf16 to f32", 6 * n, () => cast(x, "f32"));
await memoryBound("cast f32 to bf16", 6 * n, () => cast(wide, "bf16"));
await memoryBound("add bf16", 6 * n, () => add(x, y));
await memoryBound("add f32", 12 * n, () => add(wide, wide));
await memoryBound("add bf16, a row to all", 4 * n, () => add(x, weight));
await memoryBound("mul bf16 by a number", 4 * n, () => mul(x, 0.5));
await memoryBound("silu bf16", 4 * n, () => silu(x));
await memoryBound("  into memory that is there", 4 * n, () =>
  native.unary(x.native, target.native, "silu"),
);
await memoryBound("accumulate bf16 into f32", 10 * n, () =>
  native.accumulate(x.native, wideTarget.native),
);
await memoryBound("sum of all f32", 4 * n, () => sum(wide));
await memoryBound("sum over rows bf16", 2 * n, () => sum(x, 0));
await memoryBound("sum over columns bf16", 2 * n, () => sum(x, 1));
await memoryBound("permute heads bf16", 4 * n, () =>
  permute(x.view([16, tokens / 16, 32, 64]), [0, 2, 1, 3]),
);
await memoryBound("transpose bf16", 4 * n, () => permute(x, [1, 0]));
await memoryBound("slice half the columns bf16", 2 * n, () => slice(x, { 1: [0, hidden / 2] }));
await memoryBound("softmax bf16 rows of 2048", 4 * n, () => softmax(x));
await memoryBound("randn f32", 4 * n, () => randn([tokens, hidden], { seed: 1 }));
await memoryBound("rand bf16", 2 * n, () => rand([tokens, hidden], { seed: 1, dtype: "bf16" }));
await memoryBound("argmax bf16", 2 * n, () => argmax(x));
await memoryBound("swiglu", 6 * tokens * ffn, () => swiglu(gateUp));
await memoryBound("rmsNorm", 4 * n, () => rmsNorm(x, weight));
await memoryBound("copy bf16 again", 4 * n, copy);
const small = randn([16], { seed: 1 });
const enqueueing = (await time(() => add(small, small))) * 1e6;
const barely = (await time(() => native.unary(small.native, small.native, "neg"))) * 1e6;
console.log(
  `one operation on 16 numbers: ${enqueueing.toFixed(1)} us, native call alone ${barely.toFixed(1)} us`,
);

for (const [outputs, inputs] of [
  [2560, hidden],
  [hidden, hidden],
  [2 * ffn, hidden],
  [hidden, ffn],
  [vocab, hidden],
]) {
  const inside = scope();
  const input = randn([tokens, inputs], { seed: 5, dtype: "bf16" });
  const w = randn([outputs, inputs], { seed: 6, dtype: "bf16" });
  const gradient = randn([tokens, outputs], { seed: 7, dtype: "bf16" });
  const weightGradient = full([outputs, inputs], 0);
  const inputGradient = empty([tokens, inputs], { dtype: "bf16" });
  const flops = 2 * tokens * outputs * inputs;
  const name = `${outputs}x${inputs}`;
  await product(`linear ${name}`, flops, () => linear(input, w));
  await product(`  input gradient`, flops, () =>
    native.gemm(gradient.native, w.native, inputGradient.native, false, false),
  );
  await product(`  weight gradient, added in f32`, flops, () =>
    native.gemmAccumulate(gradient.native, input.native, weightGradient.native, true, false),
  );
  inside[Symbol.dispose]();
}

const copies = rows.filter(({ name }) => name.startsWith("copy"));
const copyRate = Math.max(...copies.map(({ gigabytesPerSecond }) => gigabytesPerSecond));
for (const row of rows) {
  if (row.bytes) row.ratio = row.gigabytesPerSecond / copyRate;
  const figure = row.bytes
    ? `${row.gigabytesPerSecond.toFixed(0).padStart(6)} GB/s  ${row.ratio.toFixed(2)} of the copy`
    : `${row.teraflops.toFixed(0).padStart(6)} TFLOP/s`;
  console.log(`${row.name.padEnd(34)} ${row.microseconds.toFixed(1).padStart(9)} us ${figure}`);
}
if (options.out) {
  mkdirSync(dirname(options.out), { recursive: true });
  const device = cudaInfo().devices[parseDevice(options.device).index]?.name;
  const date = new Date().toISOString().slice(0, 10);
  writeFileSync(options.out, `${JSON.stringify({ device, date, tokens, rows }, null, 2)}\n`);
}
