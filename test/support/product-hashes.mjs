// Multiplies matrices of many shapes, directly on the addon, and prints a hash of each product as
// JSON. The addon fixes the number of threads when it starts. A test that compares two numbers runs
// this program in child processes with LLAMAFORGE_THREADS.
import { createHash } from "node:crypto";
import { createRequire } from "node:module";

const addon = createRequire(import.meta.url)("node-gyp-build")(
  new URL("../..", import.meta.url).pathname,
);
const { ops, NativeTensor } = addon;

// 0 is the CPU, 1 + i GPU i.
const device =
  Number(/^cuda:?(\d*)$/.exec(process.env.LLAMAFORGE_TEST_DEVICE ?? "")?.[1] ?? -1) + 1;

// Both operands are prefixes of one random sequence, because generating more numbers would take
// longer than the products.
const numbers = Object.fromEntries(
  ["f32", "bf16"].map((dtype) => {
    const x = new NativeTensor(device, dtype, [600_000]);
    ops.philoxNormal(x, 0, 1, 11, 0);
    return [dtype, x];
  }),
);

const results = {};
async function product(batch, m, n, k, transposeA, transposeB, input, output, accumulate) {
  const leading = batch === 1 ? [] : [batch];
  const operand = (rows, columns, transposed) =>
    numbers[input].view(0, [...leading, ...(transposed ? [columns, rows] : [rows, columns])]);
  const [a, b] = [operand(m, k, transposeA), operand(k, n, transposeB)];
  const c = new NativeTensor(device, output, [...leading, m, n]);
  if (accumulate) ops.fill(c, 0.5);
  ops[accumulate ? "gemmAccumulate" : "gemm"](a, b, c, transposeA, transposeB, false);
  const letters = `${transposeA ? "t" : "n"}${transposeB ? "t" : "n"}`;
  const name = `${batch} x ${m},${n},${k} ${letters} ${input}-${output}${accumulate ? " +=" : ""}`;
  results[name] = createHash("sha256")
    .update(Buffer.from(await c.read()))
    .digest("hex")
    .slice(0, 16);
  for (const x of [a, b, c]) x.dispose();
}

const sizes = [1, 5, 16, 48, 129, 384];
const sums = [1, 64, 300, 1100];
for (const [input, output] of [
  ["f32", "f32"],
  ["bf16", "bf16"],
  ["bf16", "f32"],
]) {
  for (const m of sizes) {
    for (const n of sizes) {
      for (const k of sums) {
        for (const [transposeA, transposeB] of [
          [false, false],
          [false, true],
          [true, false],
          [true, true],
        ]) {
          await product(1, m, n, k, transposeA, transposeB, input, output, false);
        }
      }
    }
  }
  for (const [m, n, k] of [
    [1, 1, 60_000],
    [3, 20, 20_000],
    [20, 3, 20_000],
    [64, 70, 8_000],
    [600, 8, 900],
    [8, 600, 900],
    [700, 700, 300],
  ]) {
    await product(1, m, n, k, true, false, input, output, true);
    await product(1, m, n, k, false, true, input, output, true);
    if (m * k < 100_000 && n * k < 100_000) {
      await product(5, m, n, k, false, false, input, output, false);
      await product(5, m, n, k, true, false, input, output, true);
    }
  }
}
process.stdout.write(JSON.stringify(results));
