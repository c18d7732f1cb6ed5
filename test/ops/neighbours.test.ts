// An element's result depends on that element alone. Neighbors in a vector of the CPU or a pack of
// a GPU do not change it, and neither does its place in a whole vector or in the rest at the end.
// The tests compare bits and take all NaN as equal.
import { describe, expect, it } from "vitest";
import { ones, tensor } from "../../lib/core/create.js";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import * as ops from "../../lib/ops/index.js";
import type { UnaryKind } from "../../lib/ops/unary.js";
import { type FloatDType, roundToBf16, uniformSource } from "../support/reference.js";

const { NaN: nan, POSITIVE_INFINITY: inf } = Number;

/** Elements of one vector of the widest instruction set, or of two packs of a GPU. */
const lanes = 16;
/**
 * Special numbers. Each takes a separate path in some kernel: NaN, infinities, large angles,
 * subnormal numbers, both zeros.
 */
const specials = [nan, inf, -inf, 3e38, -3e38, 1e5, -8192.5, 1e-40, -1e-45, 0, -0, 100, -100];

/**
 * A special number in one lane. All other lanes have another special number, or an ordinary one if
 * it is undefined.
 */
const spoilt = (special: number, lane: number, beside?: number) =>
  Array.from({ length: lanes }, (_, i) => (i === lane ? special : beside));
/**
 * Each special number in every lane among ordinary ones, and next to every other special number. A
 * test for one kind must not miss another.
 */
const spoiltVectors = specials.flatMap((special, s) => [
  ...Array.from({ length: lanes }, (_, lane) => spoilt(special, lane)),
  ...specials.map((beside, b) => spoilt(special, (5 * s + b) % lanes, beside)),
]);

const rounding = { f32: Math.fround, bf16: (x: number) => roundToBf16(Math.fround(x)) } as const;
const dtypes = Object.keys(rounding) as FloatDType[];

/**
 * Values for which every operation takes the common path. They repeat after `period` values.
 */
function ordinary(count: number, seed: number, dtype: FloatDType, period = count): number[] {
  const uniform = uniformSource(seed);
  const values = Array.from({ length: period }, () => rounding[dtype](0.25 + 2 * uniform()));
  return Array.from({ length: count }, (_, i) => values[i % period] as number);
}

type Operation = (...inputs: Tensor[]) => Tensor;

/** The result of an operation for rows of numbers, flat. */
async function run(op: Operation, inputs: readonly (readonly number[])[], dtype: FloatDType) {
  return scope(async () => {
    const tensors = inputs.map((x) => tensor(Float32Array.from(x), { dtype }));
    return Array.from(await op(...tensors).toArray());
  });
}

/**
 * The gradient of the first input for a given gradient of the result, which is the last input here.
 */
const gradientOf =
  (op: Operation): Operation =>
  (...inputs) => {
    const leaves = inputs.slice(0, -1);
    for (const leaf of leaves) leaf.requiresGrad = true;
    op(...leaves).backward({ gradient: inputs.at(-1) as Tensor });
    return leaves[0]?.grad as Tensor;
  };

/**
 * Puts every special number into every lane of one input, among ordinary ones and among other
 * special ones. Every result must equal that of its element alone.
 */
async function expectNoNeighbours(op: Operation, count: number, dtype: FloatDType): Promise<void> {
  const base = Array.from({ length: count }, (_, input) => ordinary(lanes, 11 + input, dtype, 3));
  const known = new Map<string, number>();
  /** The result for one element of each input. */
  const single = async (elements: readonly number[]): Promise<number> => {
    const key = elements.map((x) => (Object.is(x, -0) ? "-0" : String(x))).join();
    const value =
      known.get(key) ??
      (
        await run(
          op,
          elements.map((x) => [x]),
          dtype,
        )
      )[0];
    known.set(key, value as number);
    return value as number;
  };
  const column = (i: number) => base.map((x) => x[i] as number);
  const alone: number[] = [];
  for (let i = 0; i < lanes; ++i) alone.push(await single(column(i)));
  for (let length = 1; length <= lanes; ++length) {
    const part = base.map((x) => x.slice(0, length));
    expect(await run(op, part, dtype), `${length} elements`).toEqual(alone.slice(0, length));
  }
  for (let input = 0; input < count; ++input) {
    const rows = base.map((): number[] => []);
    const expected: number[] = [];
    for (const [i, here] of spoiltVectors.flat().entries()) {
      const elements = column(i % lanes);
      if (here !== undefined) elements[input] = rounding[dtype](here);
      for (const [j, x] of elements.entries()) rows[j]?.push(x);
      expected.push(await single(elements));
    }
    // One more element at the front shifts everything to another lane, and the end to a part of a
    // vector.
    expect(await run(op, rows, dtype), `input ${input}`).toEqual(expected);
    const moved = rows.map((x, i) => [(base[i] as number[])[0] as number, ...x]);
    expect(await run(op, moved, dtype), `input ${input}, moved`).toEqual([alone[0], ...expected]);
  }
}

const unaryOps = {
  neg: ops.neg,
  abs: ops.abs,
  exp: ops.exp,
  log: ops.log,
  sqrt: ops.sqrt,
  rsqrt: ops.rsqrt,
  square: ops.square,
  reciprocal: ops.reciprocal,
  tanh: ops.tanh,
  sigmoid: ops.sigmoid,
  silu: ops.silu,
  gelu: ops.gelu,
  relu: ops.relu,
  sin: ops.sin,
  cos: ops.cos,
} satisfies { [K in UnaryKind]: Operation };

const binaryOps: Record<string, Operation> = {
  add: ops.add,
  sub: ops.sub,
  mul: ops.mul,
  div: ops.div,
  minimum: ops.minimum,
  maximum: ops.maximum,
  pow: ops.pow,
  eq: ops.eq,
  ne: ops.ne,
  lt: ops.lt,
  le: ops.le,
  gt: ops.gt,
  ge: ops.ge,
};

/** [gate | up] of one row from two inputs. */
const swiglu: Operation = (gate, up) =>
  ops.swiglu(ops.concat([gate as Tensor, up as Tensor])) as Tensor;

describe.each(dtypes)("no result depends on its neighbours in %s", (dtype) => {
  it.each(Object.entries(unaryOps))("%s and its gradient", async (_, op) => {
    await expectNoNeighbours(op, 1, dtype);
    await expectNoNeighbours(gradientOf(op), 2, dtype);
  });

  it.each(Object.entries(binaryOps))("%s", async (_, op) => {
    await expectNoNeighbours(op, 2, dtype);
  });

  it.each(["mul", "div", "pow", "minimum"])("the gradient of %s", async (kind) => {
    await expectNoNeighbours(gradientOf(binaryOps[kind] as Operation), 3, dtype);
  });

  it.each([
    ["to f32", (x: Tensor) => ops.cast(x, "f32")],
    ["to bf16", (x: Tensor) => ops.cast(x, "bf16")],
    ["to i32", (x: Tensor) => ops.cast(x, "i32")],
    ["a broadcast number on the right", (x: Tensor) => ops.pow(x, 2.5)],
    ["a broadcast number on the left", (x: Tensor) => ops.pow(1.5, x)],
    ["where", (x: Tensor) => ops.where(ops.gt(x, 1), x, -7)],
  ] as [string, Operation][])("%s", async (_, op) => {
    await expectNoNeighbours(op, 1, dtype);
  });

  it("swiglu and its gradient", async () => {
    await expectNoNeighbours(swiglu, 2, dtype);
    await expectNoNeighbours(gradientOf(swiglu), 3, dtype);
  });

  it("a pair that turns", async () => {
    // The halves of one head, and an angle for each of its pairs.
    const turn: Operation = (first, second, cosine, sine) => {
      const table = ops.stack([cosine as Tensor, sine as Tensor], 1);
      const half = table.shape[0] as number;
      const x = ops.reshape(ops.concat([first as Tensor, second as Tensor]), [1, 1, 2 * half]);
      const angles = ops.reshape(ops.cast(table, "f32"), [1, half, 2]);
      return ops.slice(ops.reshape(ops.rope(x, angles, { heads: 1 }), [2 * half]), [0], [half]);
    };
    await expectNoNeighbours(turn, 2 + 2, dtype);
  });
});

/** The result of an operation on a matrix, and its gradient for a given gradient of the result. */
type RowOperation = (x: Tensor, dy: Tensor) => Tensor;

/**
 * Batches of three tokens with one head. The columns of the rows are their queries, keys and
 * values.
 */
const attend = (x: Tensor): Tensor => {
  const [rows, width] = x.shape as [number, number];
  const o = ops.attention(ops.reshape(x, [rows, 3, width / 3]), { heads: 1 });
  return ops.reshape(o, [rows, width / 3]);
};

/** Weights of a norm over rows. */
const weightOf = ({ shape, dtype }: Tensor): Tensor => ones([shape[1] as number], { dtype });

const rowOps: [string, RowOperation][] = [
  ["softmax", (x) => ops.softmax(x)],
  ["logSoftmax", (x) => ops.logSoftmax(x)],
  ["the gradient of softmax", gradientOf((x) => ops.softmax(x as Tensor))],
  ["the gradient of logSoftmax", gradientOf((x) => ops.logSoftmax(x as Tensor))],
  ["rmsNorm", (x) => ops.rmsNorm(x, weightOf(x))],
  ["the gradient of rmsNorm", gradientOf((x) => ops.rmsNorm(x as Tensor, weightOf(x as Tensor)))],
  ["the sum of a row", (x) => ops.sum(x, 1)],
  ["the largest of a row", (x) => ops.max(x, 1)],
  ["the sum of a column", (x) => ops.sum(ops.transpose(x, 0, 1), 0)],
  ["attention", attend],
  ["the gradient of attention", gradientOf((x) => attend(x as Tensor))],
];

describe.each(dtypes)("no row depends on another in %s", (dtype) => {
  it.each(rowOps)("%s", async (name, op) => {
    const rows = 5;
    for (const width of [9, 45, 2070]) {
      const base = ordinary(rows * width, 31, dtype);
      const columns = name === "the gradient of attention" ? width / 3 : width;
      const dy = ordinary(rows * columns, 32, dtype);
      const values = async (x: number[]) =>
        scope(async () => {
          const matrix = tensor(Float32Array.from(x), { shape: [rows, width], dtype });
          const gradient = tensor(Float32Array.from(dy), { shape: [rows, columns], dtype });
          return Array.from(await op(matrix, gradient).toArray());
        });
      const expected = await values(base);
      const size = expected.length / rows;
      const row = 2;
      const others = (x: number[]) => x.filter((_, i) => Math.floor(i / size) !== row);
      const places = [0, Math.floor(width / 2), width - 1];
      for (const [i, special] of specials.map(rounding[dtype]).entries()) {
        const place = places[i % 3] as number;
        const got = await values(base.with(row * width + place, special));
        expect(others(got), `${special} at ${place} of ${width}`).toEqual(others(expected));
      }
    }
  });
});
