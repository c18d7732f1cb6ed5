// Runs the plain kernels on fixed inputs, large enough for a team of threads. Prints for each the
// hash of its output and some values as JSON. It is a separate program, because a process chooses
// the number of threads and the instruction set once: LLAMAFORGE_THREADS, LLAMAFORGE_CPU_ISA.
import { createHash } from "node:crypto";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));
const addon = createRequire(import.meta.url)("node-gyp-build")(root);
const { NativeTensor, ops } = addon;

// 0 is the CPU, 1 + i GPU i.
const device =
  Number(/^cuda:?(\d*)$/.exec(process.env.LLAMAFORGE_TEST_DEVICE ?? "")?.[1] ?? -1) + 1;
const make = (shape, dtype = "f32") => new NativeTensor(device, dtype, shape);
const sizeOf = (shape) => shape.reduce((product, size) => product * size, 1);
let state = 1;
function floats(shape, low = -2, high = 2) {
  const x = make(shape);
  const values = Float32Array.from({ length: sizeOf(shape) }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return low + ((high - low) * state) / 2 ** 32;
  });
  x.write(values);
  return x;
}
function integers(shape, count) {
  const x = make(shape, "i32");
  x.write(
    Int32Array.from({ length: sizeOf(shape) }, () => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return (state >>> 8) % count;
    }),
  );
  return x;
}
function bf16(x, shape) {
  const y = make(shape, "bf16");
  ops.cast(x, y);
  return y;
}

// Sizes that split unevenly over any team.
const shape = [101, 997];
const x = floats(shape);
const positive = floats(shape, 0.01, 3);
const row = floats([997], 0.5, 2);
const column = floats([101, 1], 0.5, 2);
const long = floats([3, 150001]);
const tall = floats([50001, 3]);
const index = integers(shape, 101);

/** name -> [output shape, output dtype, run(output)] */
const cases = {};
const unaryKinds =
  "neg abs exp log sqrt rsqrt square reciprocal tanh sigmoid silu gelu relu sin cos".split(" ");
for (const kind of unaryKinds) {
  const from = ["log", "sqrt", "rsqrt", "reciprocal"].includes(kind) ? positive : x;
  cases[kind] = [shape, "f32", (y) => ops.unary(from, y, kind)];
  cases[`${kind} backward`] = [shape, "f32", (y) => ops.unaryBackward(x, from, y, kind)];
  cases[`${kind} bf16`] = [shape, "bf16", (y) => ops.unary(bf16(from, shape), y, kind)];
}
for (const kind of ["add", "sub", "mul", "div", "minimum", "maximum", "pow"]) {
  cases[kind] = [shape, "f32", (y) => ops.binary(positive, x, y, kind)];
  cases[`${kind} row`] = [shape, "f32", (y) => ops.binary(positive, row, y, kind)];
  cases[`${kind} column`] = [shape, "f32", (y) => ops.binary(column, x, y, kind)];
}
for (const kind of ["sum", "mean", "max", "min"]) {
  for (const axes of [[0], [1], [0, 1]]) {
    const kept = shape.filter((_, axis) => !axes.includes(axis));
    cases[`${kind} ${axes}`] = [kept, "f32", (y) => ops.reduce(x, y, axes, kind)];
  }
  cases[`${kind} long`] = [[3], "f32", (y) => ops.reduce(long, y, [1], kind)];
  cases[`${kind} tall`] = [[3], "f32", (y) => ops.reduce(tall, y, [0], kind)];
}
for (const log of [false, true]) {
  const y = make(shape);
  ops.softmax(x, y, log);
  cases[`softmax ${log}`] = [shape, "f32", (out) => ops.softmax(x, out, log)];
  cases[`softmax backward ${log}`] = [shape, "f32", (out) => ops.softmaxBackward(x, y, out, log)];
}
cases.where = [shape, "f32", (y) => ops.where(index, x, positive, y)];
cases.permute = [[997, 101], "f32", (y) => ops.permute(x, y, [1, 0])];
cases.slice = [[99, 990], "f32", (y) => ops.slice(x, y, [2, 7])];
cases.gather = [shape, "f32", (y) => ops.gather(x, index, y, 0)];
for (const dtype of ["f32", "bf16"]) {
  cases[`scatterAdd ${dtype}`] = [
    shape,
    dtype,
    (y) => {
      ops.fill(y, 0);
      ops.scatterAdd(dtype === "f32" ? x : bf16(x, shape), index, y, 0);
    },
  ];
}

const results = {};
for (const [name, [outputShape, dtype, run]] of Object.entries(cases)) {
  const y = make(outputShape, dtype);
  run(y);
  const bytes = await y.read();
  const wide = make(outputShape);
  ops.cast(y, wide);
  const values = new Float32Array(await wide.read());
  const stride = Math.max(1, Math.floor(values.length / 300));
  results[name] = {
    dtype,
    hash: createHash("sha256").update(new Uint8Array(bytes)).digest("hex"),
    values: [...values].filter((_, i) => i % stride === 0),
  };
}
const { threads, instructionSet } = addon.buildInfo();
console.log(JSON.stringify({ threads, instructionSet, results }));
