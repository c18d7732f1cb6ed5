import { describe, expect, it } from "vitest";
import { recompute } from "../../lib/core/autograd.js";
import { tensor, zeros } from "../../lib/core/create.js";
import { DTypeError, ShapeError } from "../../lib/core/errors.js";
import { native } from "../../lib/core/native.js";
import { memory } from "../../lib/core/runtime.js";
import { scope } from "../../lib/core/scope.js";
import { empty, type Tensor } from "../../lib/core/tensor.js";
import { add, mul } from "../../lib/ops/binary.js";
import { emptyCopy, type Fp8Copy, fp8Cast, fp8Maximum } from "../../lib/ops/fp8.js";
import { fp8Linear, fp8NormFeedForward, fp8NormLinear } from "../../lib/ops/fp8-linear.js";
import { Fp8Weights } from "../../lib/ops/fp8-weights.js";
import { linear } from "../../lib/ops/linear.js";
import { mean, sum } from "../../lib/ops/reduce.js";
import { addRmsNorm, rmsNorm } from "../../lib/ops/rms-norm.js";
import { swiglu } from "../../lib/ops/swiglu.js";
import { toTensor } from "../support/float-ops.js";
import {
  e4m3,
  e5m2,
  type Format,
  roundToFp8,
  scaleOf,
  throughFp8,
} from "../support/fp8-reference.js";
import { type Reference, random } from "../support/reference.js";

const both = { rows: true, columns: true };
const bf16 = (x: Reference, requiresGrad = false): Tensor => toTensor(x, "bf16", requiresGrad);
const numbers = async (x: Tensor): Promise<number[]> => [...(await x.toArray())];

/** A copy's numbers, by its rows and by its columns without the padding. */
async function contents({ rows, columns, scale }: Fp8Copy): Promise<[number[], number[]]> {
  const factor = (await scale.toArray())[0] as number;
  const byRows = [...(await (rows as Tensor).toArray())].map((x) => x * factor);
  const [width, padded] = (columns as Tensor).shape as [number, number];
  const stored = await (columns as Tensor).toArray();
  const count = byRows.length / width;
  const byColumns = byRows.map((_, i) => {
    const [row, column] = [Math.floor(i / width), i % width];
    return (stored[column * padded + row] as number) * factor;
  });
  for (let column = 0; column < width; column++) {
    for (let row = count; row < padded; row++) {
      if (stored[column * padded + row] !== 0) throw new Error(`padding of column ${column}`);
    }
  }
  return [byRows, byColumns];
}

const norm = (x: ArrayLike<number>): number => Math.hypot(...Array.from(x));
function distance(x: ArrayLike<number>, to: ArrayLike<number>): number {
  expect(x.length).toBe(to.length);
  return norm(Array.from(x, (value, i) => value - (to[i] as number))) / norm(to);
}

describe.each([e4m3, e5m2])("a cast to $name", (format: Format) => {
  it.each([[[1, 16]], [[5, 48]], [[16, 128]], [[2, 70, 80]], [[130, 144]], [[300, 272]]])(
    "rounds to the nearest number of the format, as rows and as columns, for %j",
    async (shape) => {
      const x = random(shape, 1, { low: -3, high: 3, dtype: "bf16" });
      const copy = fp8Cast(bf16(x), both, format.name);
      const largest = Math.max(...x.data.map(Math.abs));
      const expected = [...throughFp8(x.data, largest, format)];
      expect((await copy.scale.toArray())[0]).toBe(scaleOf(largest, format));
      const [byRows, byColumns] = await contents(copy);
      expect(byRows).toEqual(expected);
      expect(byColumns).toEqual(expected);
    },
  );

  it("rounds halves to even, keeps subnormals and the sign of zero", async () => {
    const step = 2 ** (format.leastExponent - format.mantissa);
    const values = [
      ...[0, -0, step, step / 2, 1.5 * step, -2.5 * step, step / 4],
      ...[1, 1 + 2 ** (-format.mantissa - 1), 1 + 3 * 2 ** (-format.mantissa - 1), -1.25, 1.5],
      ...[format.largest, -format.largest, format.largest / 2, 2 - 2 ** -7],
    ];
    // The bound of the largest number itself makes the scale 1.
    const copy = fp8Cast(tensor([values], { dtype: "bf16" }), both, format.name);
    const stored = await numbers(copy.rows as Tensor);
    expect((await copy.scale.toArray())[0]).toBe(1);
    expect(stored).toEqual(values.map((value) => roundToFp8(value, format)));
  });

  it("saturates beyond its bound, and makes everything NaN where the bound is not finite", async () => {
    const x = tensor([Array.from({ length: 16 }, (_, i) => (i - 8) * 100)], { dtype: "bf16" });
    const saturated = fp8Cast(x, both, format.name, tensor([1]));
    const least = scaleOf(1, format) * format.largest;
    const [byRows] = await contents(saturated);
    expect(byRows[0]).toBe(-least);
    expect(byRows[15]).toBe(least);
    for (const bad of [Number.NaN, Number.POSITIVE_INFINITY]) {
      const values = Array.from({ length: 32 }, (_, i) => (i === 21 ? bad : i));
      const y = tensor(values, { shape: [2, 16], dtype: "bf16" });
      expect([...(await fp8Maximum(y).toArray())]).toEqual([bad]);
      const copy = fp8Cast(y, both, format.name);
      expect((await numbers(copy.rows as Tensor)).every(Number.isNaN)).toBe(true);
      expect(await numbers(copy.scale)).toEqual([Number.NaN]);
    }
  });

  it("casts zeros to zeros", async () => {
    const copy = fp8Cast(zeros([3, 32], { dtype: "bf16" }), both, format.name);
    expect(await contents(copy)).toEqual([Array(96).fill(0), Array(96).fill(0)]);
    expect(await numbers(copy.scale)).toEqual([1]);
  });
});

describe.each([e4m3, e5m2])("figures of a tensor in $name", (format: Format) => {
  const figuresOf = async (copy: Fp8Copy, part: Tensor | null) => {
    const figures = empty([4]);
    native.fp8Statistics((part as Tensor).native, copy.scale.native, figures.native);
    return await numbers(figures);
  };

  it.each([[[1, 16]], [[5, 48]], [[130, 144]], [[3, 100, 272]]])(
    "count zeros, numbers at the end of the format and others, for %j",
    async (shape) => {
      const x = random(shape, 2, { low: -1, high: 1, dtype: "bf16" });
      // Beyond the bound, and so small that they become 0.
      x.data.forEach((_, i) => {
        if (i % 7 === 3) x.data[i] = (i % 2 ? 1 : -1) * 4;
        if (i % 5 === 2) x.data[i] = 2 ** -40;
      });
      const copy = fp8Cast(bf16(x), both, format.name, tensor([1]));
      const factor = scaleOf(1, format);
      const held = [...x.data].map((value) => roundToFp8(value / factor, format));
      const share = (of: (value: number) => boolean) =>
        Math.fround(held.filter(of).length / held.length);
      const expected = [
        Math.max(...held.map(Math.abs)) * factor,
        share((value) => value === 0),
        share((value) => Math.abs(value) === format.largest),
        0,
      ];
      expect(await figuresOf(copy, copy.rows)).toEqual(expected);
    },
  );

  it("count numbers that are not finite", async () => {
    const values = Array.from({ length: 48 }, (_, i) => (i === 21 ? Number.POSITIVE_INFINITY : i));
    const broken = fp8Cast(tensor([values], { dtype: "bf16" }), both, format.name);
    expect(await figuresOf(broken, broken.rows)).toEqual([Number.NaN, 0, 0, 1]);
    const some = fp8Cast(tensor([values], { dtype: "bf16" }), both, format.name, tensor([64]));
    // A cast with a finite bound saturates what is infinite.
    expect((await figuresOf(some, some.rows))[3]).toBe(0);
  });
});

it.each([1, 7, 8, 4096, 100_003])("finds the largest of %i numbers", async (n) => {
  const x = random([n], n, { low: -2, high: 1, dtype: "bf16" });
  const largest = Math.max(...x.data.map(Math.abs));
  expect(await numbers(fp8Maximum(bf16(x)))).toEqual([largest]);
});

describe.each([
  { left: e4m3, right: e4m3 },
  { left: e5m2, right: e4m3 },
  { left: e4m3, right: e5m2 },
])("a product of $left.name and $right.name", ({ left, right }) => {
  it.each([
    [16, 16, 16],
    [5, 32, 48],
    [130, 144, 272],
    [256, 128, 512],
  ])("(%i,K) · (%i,K)ᵀ is that of the cast numbers, also where it is added", async (m, n, k) => {
    const [a, b] = [random([m, k], 3, { dtype: "bf16" }), random([n, k], 4, { dtype: "bf16" })];
    const [a8, b8] = [fp8Cast(bf16(a), both, left.name), fp8Cast(bf16(b), both, right.name)];
    const [wideA] = await contents(a8);
    const [wideB] = await contents(b8);
    const expected = Array.from({ length: m * n }, (_, at) => {
      const [row, column] = [Math.floor(at / n) * k, (at % n) * k];
      let total = 0;
      for (let i = 0; i < k; i++)
        total += (wideA[row + i] as number) * (wideB[column + i] as number);
      return total;
    });
    const run = async (dtype: "f32" | "bf16", fast: boolean, start: number | null) => {
      const c = start === null ? empty([m, n], { dtype }) : toTensor(random([m, n], 5), dtype);
      const before = start === null ? null : await numbers(c);
      const multiply = start === null ? native.fp8Gemm : native.fp8GemmAccumulate;
      const [ra, rb] = [a8.rows as Tensor, b8.rows as Tensor];
      multiply(ra.native, a8.scale.native, rb.native, b8.scale.native, c.native, fast);
      const sums = expected.map((value, i) => value + (before?.[i] ?? 0));
      return distance(await c.toArray(), sums);
    };
    expect(await run("f32", false, null)).toBeLessThan(1e-3);
    expect(await run("f32", true, null)).toBeLessThan(2e-3);
    expect(await run("bf16", true, null)).toBeLessThan(1e-2);
    expect(await run("f32", false, 1)).toBeLessThan(1e-3);
    expect(await run("bf16", false, 1)).toBeLessThan(1e-2);
  });
});

it("norms rows and casts them with the bound of any normed row", async () => {
  for (const [rows, width] of [
    [3, 48],
    [40, 128],
    [33, 512],
    [50, 2048],
    [4, 5632],
  ] as const) {
    const x = random([rows, width], 6, { low: -2, high: 5, dtype: "bf16" });
    const skip = random([rows, width], 7, { dtype: "bf16" });
    const weight = random([width], 8, { low: 0.5, high: 1.5, dtype: "bf16" });
    const copy = emptyCopy([rows, width], bf16(x), both, "f8e4m3");
    const [r, rstd] = [empty([rows, width], { dtype: "bf16" }), empty([rows])];
    native.fp8RmsNormForward(
      bf16(x).native,
      bf16(skip).native,
      bf16(weight).native,
      r.native,
      (copy.rows as Tensor).native,
      (copy.columns as Tensor).native,
      copy.scale.native,
      rstd.native,
      1e-5,
    );
    const [total, normed] = addRmsNorm(bf16(x), bf16(skip), bf16(weight), 1e-5);
    expect(await numbers(r)).toEqual(await numbers(total));
    const bound = Math.sqrt(width) * Math.max(...weight.data);
    expect(await numbers(copy.scale)).toEqual([scaleOf(bound, e4m3)]);
    const [byRows, byColumns] = await contents(copy);
    expect(byColumns).toEqual(byRows);
    // Half of the last of 3 bits after the first one, at most; and the bf16 rounding of the oracle.
    const expected = await numbers(normed);
    const wrong = byRows.filter((value, i) => {
      const exact = expected[i] as number;
      const step = Math.max(Math.abs(exact) * 2 ** -4, scaleOf(bound, e4m3) * 2 ** -10);
      return Math.abs(value - exact) > step * 1.1;
    });
    expect(wrong).toEqual([]);
  }
});

it("gives SwiGLU's largest number, and bounds every gradient by its slope", async () => {
  for (const [rows, ffn] of [
    [3, 16],
    [20, 144],
    [130, 272],
  ] as const) {
    const gateUp = bf16(random([rows, 2 * ffn], 9, { low: -6, high: 6, dtype: "bf16" }));
    const [y, maximum, slope] = [empty([rows, ffn], gateUp), empty([1]), empty([1])];
    native.fp8SwigluForward(gateUp.native, y.native, maximum.native, slope.native);
    const expected = await numbers(swiglu(gateUp));
    expect(await numbers(y)).toEqual(expected);
    expect(await numbers(maximum)).toEqual([Math.max(...expected.map(Math.abs))]);

    const dy = bf16(random([rows, ffn], 10, { dtype: "bf16" }));
    const dGateUp = empty(gateUp.shape, gateUp);
    native.swigluBackward(dy.native, gateUp.native, dGateUp.native);
    const exact = await numbers(dGateUp);
    const largest = fp8Maximum(dy);
    const bound = ((await slope.toArray())[0] as number) * ((await largest.toArray())[0] as number);
    expect(Math.max(...exact.map(Math.abs))).toBeLessThanOrEqual(bound);
    const copy = emptyCopy(gateUp.shape, gateUp, both, "f8e5m2");
    native.fp8SwigluBackward(
      dy.native,
      largest.native,
      gateUp.native,
      slope.native,
      (copy.rows as Tensor).native,
      (copy.columns as Tensor).native,
      copy.scale.native,
    );
    expect(await numbers(copy.scale)).toEqual([scaleOf(Math.fround(bound), e5m2)]);
    const [byRows, byColumns] = await contents(copy);
    expect(byColumns).toEqual(byRows);
    const wrong = byRows.filter((value, i) => {
      const size = Math.abs(exact[i] as number);
      return Math.abs(value - (exact[i] as number)) > size * 2 ** -3 * 1.1 + 1e-6;
    });
    expect(wrong).toEqual([]);
  }
});

/** Loss and gradients of a function of some leaves. */
async function gradientsOf(
  leaves: Record<string, Tensor>,
  fn: (leaves: Record<string, Tensor>) => Tensor,
): Promise<Record<string, number[]>> {
  const y = fn(leaves);
  const weights = bf16(random(y.shape, 77, { dtype: "bf16" }));
  sum(mul(y, weights)).backward();
  const result: Record<string, number[]> = { y: await numbers(y) };
  for (const [name, leaf] of Object.entries(leaves)) {
    result[name] = await numbers(leaf.grad as Tensor);
  }
  return result;
}

/** Compares without the long list of differences, which takes minutes for large arrays. */
function expectSame(got: Record<string, number[]>, expected: Record<string, number[]>): void {
  const differing = Object.keys(expected).filter(
    (key) => !expected[key]?.every((value, i) => Object.is(value, got[key]?.[i])),
  );
  expect(differing).toEqual([]);
}

const rows = 96;
const [hidden, ffn] = [128, 176];
function makeLeaves(): Record<string, Tensor> {
  const leaf = (shape: number[], seed: number, high: number, low = -high): Tensor =>
    bf16(random(shape, seed, { low, high, dtype: "bf16" }), true);
  return {
    x: leaf([2, rows / 2, hidden], 20, 2),
    skip: leaf([2, rows / 2, hidden], 21, 1),
    norm: leaf([hidden], 22, 1.5, 0.5),
    gateUp: leaf([2 * ffn, hidden], 23, 0.3),
    down: leaf([hidden, ffn], 24, 0.2),
  };
}
type Leaves = Record<"x" | "skip" | "norm" | "gateUp" | "down" | "bias" | "bias2", Tensor>;

/** The same in bf16, and in fp8 with given weights; `biases` adds two leaves. */
const functions: Record<
  string,
  { bf16: (l: Leaves) => Tensor; fp8: (l: Leaves, w: Fp8Weights) => Tensor; uses: (keyof Leaves)[] }
> = {
  "fp8Linear with a bias": {
    bf16: ({ x, gateUp, bias }) => linear(x, gateUp, bias),
    fp8: ({ x, gateUp, bias }, w) => fp8Linear(x, { weight: gateUp, bias }, w),
    uses: ["x", "gateUp", "bias"],
  },
  "fp8NormLinear of a sum": {
    bf16: ({ x, skip, norm, gateUp }) => {
      const [total, normed] = addRmsNorm(x, skip, norm);
      return add(linear(normed, gateUp), mean(total, -1, { keepDims: true }));
    },
    fp8: ({ x, skip, norm, gateUp }, w) => {
      const layer = { weight: gateUp, bias: null };
      const [total, y] = fp8NormLinear(x, skip, { weight: norm, eps: 1e-5 }, layer, w);
      return add(y, mean(total, -1, { keepDims: true }));
    },
    uses: ["x", "skip", "norm", "gateUp"],
  },
  "fp8NormLinear of the input itself": {
    bf16: ({ x, norm, gateUp, bias }) => linear(rmsNorm(x, norm), gateUp, bias),
    fp8: ({ x, norm, gateUp, bias }, w) =>
      fp8NormLinear(x, null, { weight: norm, eps: 1e-5 }, { weight: gateUp, bias }, w)[1],
    uses: ["x", "norm", "gateUp", "bias"],
  },
  "fp8NormFeedForward with biases": {
    bf16: ({ x, skip, norm, gateUp, down, bias, bias2 }) => {
      const [, normed] = addRmsNorm(x, skip, norm);
      return linear(swiglu(linear(normed, gateUp, bias)), down, bias2);
    },
    fp8: ({ x, skip, norm, gateUp, down, bias, bias2 }, w) =>
      fp8NormFeedForward(
        x,
        skip,
        { weight: norm, eps: 1e-5 },
        { gateUp: { weight: gateUp, bias }, down: { weight: down, bias: bias2 } },
        w,
      )[1],
    uses: ["x", "skip", "norm", "gateUp", "down", "bias", "bias2"],
  },
  fp8NormFeedForward: {
    bf16: ({ x, skip, norm, gateUp, down }) => {
      const [, normed] = addRmsNorm(x, skip, norm);
      return linear(swiglu(linear(normed, gateUp)), down);
    },
    fp8: ({ x, skip, norm, gateUp, down }, w) =>
      fp8NormFeedForward(
        x,
        skip,
        { weight: norm, eps: 1e-5 },
        { gateUp: { weight: gateUp, bias: null }, down: { weight: down, bias: null } },
        w,
      )[1],
    uses: ["x", "skip", "norm", "gateUp", "down"],
  },
};

describe.each(Object.keys(functions))("%s", (name) => {
  const { bf16: plain, fp8, uses } = functions[name] as (typeof functions)[string];
  const leavesOf = (): Leaves => {
    const all = makeLeaves() as Leaves;
    all.bias = bf16(random([2 * ffn], 25, { dtype: "bf16" }), true);
    all.bias2 = bf16(random([hidden], 26, { dtype: "bf16" }), true);
    return Object.fromEntries(uses.map((use) => [use, all[use]])) as Leaves;
  };

  it("is near the same function in bf16, and so is each gradient", async () => {
    const expected = await gradientsOf(leavesOf(), (leaves) => plain(leaves as Leaves));
    const weights = new Fp8Weights(true);
    const got = await gradientsOf(leavesOf(), (leaves) => fp8(leaves as Leaves, weights));
    weights.dispose();
    // Rounding to 3 bits errs by 2.6% (root mean square), to 2 bits by 5.2%.
    for (const key of ["y", ...uses]) {
      expect(distance(got[key] as number[], expected[key] as number[]), key).toBeLessThan(0.12);
    }
  });

  it("gives the same bits again, with copies of weights for each use, and when computed again", async () => {
    const kept = new Fp8Weights(true);
    const first = await gradientsOf(leavesOf(), (leaves) => fp8(leaves as Leaves, kept));
    const fresh = new Fp8Weights(false);
    const second = await gradientsOf(leavesOf(), (leaves) => fp8(leaves as Leaves, fresh));
    expectSame(second, first);
    const third = await gradientsOf(leavesOf(), (leaves) => {
      // Activations are inputs, parameters are used from within, as in a block.
      const names = uses.filter((use) => use === "x" || use === "skip");
      const inputs = names.map((use) => leaves[use] as Tensor);
      const [y] = recompute("test", inputs, (...again) => {
        const named = Object.fromEntries(names.map((use, i) => [use, again[i] as Tensor]));
        return [fp8({ ...(leaves as Leaves), ...named }, fresh)];
      });
      return y as Tensor;
    });
    expectSame(third, first);
    kept.dispose();
  });
});

it("casts a weight again once it has changed, and not before", async () => {
  const weights = new Fp8Weights(true);
  const weight = bf16(random([32, 16], 30, { dtype: "bf16" }));
  const before = await numbers(weights.rows(weight).bits);
  expect(weights.rows(weight).bits).toBe(weights.rows(weight).bits);
  native.fill(weight.native, 3);
  expect(await numbers(weights.rows(weight).bits)).toEqual(before);
  weight.changed("a test");
  expect(new Set(await numbers(weights.rows(weight).bits))).toEqual(new Set([384]));
  expect(new Set(await numbers(weights.columns(weight).bits))).toEqual(new Set([384]));
  weights.dispose();
});

it("leaves no tensor behind", () => {
  const weights = new Fp8Weights(true);
  const leaves = makeLeaves() as Leaves;
  let live = 0;
  for (let pass = 0; pass < 3; pass++) {
    scope(() => {
      const run = functions.fp8NormFeedForward as (typeof functions)[string];
      sum(run.fp8(leaves, weights)).backward();
    });
    const { tensors } = memory();
    if (pass > 0) expect(tensors).toBe(live);
    live = tensors;
  }
  weights.dispose();
});

describe("refuses", () => {
  const weights = new Fp8Weights(false);
  it.each([
    [
      "f32",
      () => fp8Linear(zeros([4, 32]), { weight: zeros([16, 32]), bias: null }, weights),
      DTypeError,
      "expected dtype bf16 for x",
    ],
    [
      "a width that is not a multiple of 16",
      () =>
        fp8Linear(
          zeros([4, 24], { dtype: "bf16" }),
          { weight: zeros([16, 24], { dtype: "bf16" }), bias: null },
          weights,
        ),
      ShapeError,
      "multiples of 16, got a weight of shape [16,24]",
    ],
    [
      "a weight of another width",
      () =>
        fp8Linear(
          zeros([4, 32], { dtype: "bf16" }),
          { weight: zeros([16, 16], { dtype: "bf16" }), bias: null },
          weights,
        ),
      ShapeError,
      "expected weight of shape (outputs, 32)",
    ],
    [
      "a user's tensor of 8 bits",
      () => zeros([4], { dtype: "f8e4m3" }),
      DTypeError,
      "only products",
    ],
  ])("%s", (_, call, type, message) => {
    expect(call).toThrow(type);
    expect(call).toThrow(message);
  });
});
