// Runs the kernels whose sums cross threads, directly on the addon, and prints a hash of each
// result as JSON. The addon fixes the number of threads and the instruction set when it starts. A
// test that compares them runs this program in child processes with LLAMAFORGE_THREADS and
// LLAMAFORGE_CPU_ISA.
import { createHash } from "node:crypto";
import { createRequire } from "node:module";

const addon = createRequire(import.meta.url)("node-gyp-build")(
  new URL("../..", import.meta.url).pathname,
);
const { ops, NativeTensor } = addon;

// 0 is the CPU, 1 + i GPU i.
const device =
  Number(/^cuda:?(\d*)$/.exec(process.env.LLAMAFORGE_TEST_DEVICE ?? "")?.[1] ?? -1) + 1;
const empty = (shape, dtype = "f32") => new NativeTensor(device, dtype, shape);
let seed = 0;
const normal = (shape, dtype = "f32") => {
  const x = empty(shape, dtype);
  ops.philoxNormal(x, 0.25, 1, ++seed, 0);
  return x;
};
const filled = (shape, value, dtype = "f32") => {
  const x = empty(shape, dtype);
  ops.fill(x, value);
  return x;
};
const hash = async (x) =>
  createHash("sha256")
    .update(Buffer.from(await x.read()))
    .digest("hex")
    .slice(0, 16);

const results = {};
const record = async (name, ...tensors) => {
  for (const [i, x] of tensors.entries()) results[`${name} ${i}`] = await hash(x);
};

for (const dtype of ["f32", "bf16"]) {
  const [rows, hidden] = [1037, 193];
  const [x, skip, dy] = [
    normal([rows, hidden], dtype),
    normal([rows, hidden], dtype),
    normal([rows, hidden], dtype),
  ];
  const weight = normal([hidden], dtype);
  const [sum, y, dx] = [
    empty([rows, hidden], dtype),
    empty([rows, hidden], dtype),
    empty([rows, hidden], dtype),
  ];
  const [rstd, weightGrad] = [empty([rows]), filled([hidden], 0)];
  ops.addRmsNormForward(x, skip, weight, sum, y, rstd, 1e-5);
  ops.rmsNormBackward(dy, sum, weight, rstd, skip, dx, weightGrad);
  await record(`rmsNorm ${dtype}`, sum, y, rstd, dx, weightGrad);

  const ids = empty([rows], "i32");
  ids.write(Int32Array.from({ length: rows }, (_, i) => (i * i) % 29));
  const table = filled([29, hidden], 0);
  ops.embeddingBackward(ids, dy, table);
  await record(`embedding ${dtype}`, table);

  const gateUp = normal([301, 2 * 177], dtype);
  const [activated, dGateUp] = [empty([301, 177], dtype), empty([301, 2 * 177], dtype)];
  ops.swigluForward(gateUp, activated);
  ops.swigluBackward(activated, gateUp, dGateUp);
  await record(`swiglu ${dtype}`, activated, dGateUp);

  const squares = empty([1]);
  const many = normal([300_007], dtype);
  ops.sumOfSquares(many, squares);
  await record(`sumOfSquares ${dtype}`, squares);

  const [w, m, v] = [normal([70_001], dtype), filled([70_001], 0), filled([70_001], 0)];
  const master = dtype === "bf16" ? normal([70_001]) : null;
  const decision = filled([8], 1);
  ops.adamw(w, master, normal([70_001]), m, v, decision, 1e-3, 0.9, 0.95, 1e-8, 0.1);
  await record(`adamw ${dtype}`, w, m, v, ...(master ? [master] : []));

  const uniform = empty([100_003], dtype);
  ops.philoxUniform(uniform, -1, 2, 3, 5);
  await record(`random ${dtype}`, many, uniform);

  const chosen = empty([300], "i32");
  ops.sample(normal([300, 311], dtype), chosen, 0.8, 50, 0.9, 1, 0);
  await record(`sample ${dtype}`, chosen);
}
console.log(JSON.stringify(results));
