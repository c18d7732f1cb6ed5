import { describe, expect, it } from "vitest";
import { arange, empty, full, tensor } from "../../lib/core/create.js";
import { ArgumentError, AutogradError } from "../../lib/core/errors.js";
import { native } from "../../lib/core/native.js";
import type { DType, Tensor } from "../../lib/core/tensor.js";
import { cast } from "../../lib/ops/cast.js";
import { toTensor } from "../support/float-ops.js";
import { expectClose, random, rounded, roundToBf16 } from "../support/reference.js";

const values = [
  0, -0, 1, -1, 0.1, -0.1, 2.5, -2.5, 1e-3, 65504, 16777217, 1e9, -1e9, 1.00390625, 1.01171875,
  3.3895e38,
];

describe("cast", () => {
  it.each([1, 15, 31, 33, 100_003])("rounds %i floats to bf16, to nearest even", async (size) => {
    const x = random([size], 1, { low: -300, high: 300 });
    const y = cast(toTensor(x), "bf16");
    expect(y.dtype).toBe("bf16");
    await expectClose(y, rounded(x, "bf16"), 0);
    await expectClose(cast(y, "f32"), rounded(x, "bf16"), 0);
  });

  it("keeps special values: signed zeros, infinities, NaN, ties, overflow", async () => {
    const special = [...values, Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
    const bf16 = await cast(tensor(special), "bf16").toArray();
    expect([...bf16]).toEqual(special.map((v) => roundToBf16(Math.fround(v))));
    expect([...(await cast(tensor([3.4e38]), "bf16").toArray())]).toEqual([
      Number.POSITIVE_INFINITY,
    ]);
  });

  it("drops the fraction on the way to i32, and NaN and what is beyond have a defined result", async () => {
    const x = [
      0.9,
      -0.9,
      1.5,
      -1.5,
      2147483520,
      2147483648,
      3e9,
      -2147483648,
      -3e9,
      1e38,
      -1e38,
      Number.NaN,
    ];
    const beyond = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
    const expected = [
      0, 0, 1, -1, 2147483520, 2147483647, 2147483647, -2147483648, -2147483648, 2147483647,
      -2147483648, 0,
    ];
    const ends = [2147483647, -2147483648];
    // The values come twice: in whole vectors and in the tail.
    const y = await cast(tensor([...x, ...beyond, ...x, ...beyond, ...x]), "i32").toArray();
    expect([...y]).toEqual([...expected, ...ends, ...expected, ...ends, ...expected]);
    expect([
      ...(await cast(tensor([7.9, -7.9, Number.NaN], { dtype: "bf16" }), "i32").toArray()),
    ]).toEqual([7, -7, 0]);
  });

  it("converts integers to floats", async () => {
    const ids = [0, 1, -1, 255, 257, 16777217, -2147483648, 2147483647];
    const x = tensor(Int32Array.from(ids));
    expect([...(await cast(x, "f32").toArray())]).toEqual(ids.map(Math.fround));
    expect([...(await cast(x, "bf16").toArray())]).toEqual(
      ids.map((v) => roundToBf16(Math.fround(v))),
    );
  });

  it("is differentiable between floats, and a cut towards integers", async () => {
    const x = random([3, 5], 1, { dtype: "bf16" });
    for (const [from, to] of [
      ["f32", "bf16"],
      ["bf16", "f32"],
      ["f32", "f32"],
    ] as const) {
      const leaf = toTensor(x, from, true);
      const dy = random([3, 5], 2, { dtype: "bf16" });
      cast(leaf, to).backward({ gradient: toTensor(dy, to) });
      expect(leaf.grad?.dtype).toBe("f32");
      await expectClose(leaf.grad as Tensor, dy, 0);
    }
    expect(cast(toTensor(x, "f32", true), "i32").requiresGrad).toBe(false);
    expect(() => cast(toTensor(x, "f32", true), "i32").backward()).toThrow(AutogradError);
  });

  it("to the same dtype shares memory but not life", async () => {
    const x = tensor([1, 2, 3]);
    const y = cast(x, "f32");
    y.dispose();
    expect([...(await x.toArray())]).toEqual([1, 2, 3]);
  });

  it.each([["f64"], [undefined], [7]])("refuses the dtype %s", (dtype) => {
    expect(() => cast(tensor([1]), dtype as DType)).toThrow(ArgumentError);
    expect(() => cast(tensor([1]), dtype as DType)).toThrow("[cast] expected");
  });
});

/** A double as a whole number times 2^-1074. */
function wholeOf(x: number): bigint {
  const bits = new BigUint64Array(Float64Array.of(Math.abs(x)).buffer)[0] as bigint;
  const exponent = bits >> 52n;
  const mantissa = bits & ((1n << 52n) - 1n);
  const whole = exponent === 0n ? mantissa : (mantissa | (1n << 52n)) << (exponent - 1n);
  return x < 0 ? -whole : whole;
}

/** a · b + c of doubles, with a whole a: exact, then rounded to a double. */
function multiplyAdd(a: number, b: number, c: number): number {
  const whole = BigInt(a) * wholeOf(b) + wholeOf(c);
  const negative = whole < 0n;
  const digits = (negative ? -whole : whole).toString(2);
  // Number() rounds to nearest even. Scaling by a power of two loses nothing.
  const shift = Math.max(0, digits.length - 1000);
  const upper = BigInt(`0b${digits.slice(0, digits.length - shift)}`);
  const rest = digits.slice(digits.length - shift).includes("1") ? 1n : 0n;
  const value = Number(upper | rest) * 2 ** (shift - 1000) * 2 ** -74;
  return negative ? -value : value;
}

describe("fill, arange and accumulate", () => {
  it.each([1, 31, 33, 70_001])("fill and count %i elements in every dtype", async (size) => {
    expect(new Set(await full([size], 3, { dtype: "i32" }).toArray())).toEqual(new Set([3]));
    expect(new Set(await full([size], 0.1, { dtype: "bf16" }).toArray())).toEqual(
      new Set([roundToBf16(0.1)]),
    );
    expect(new Set(await full([size], 0.1).toArray())).toEqual(new Set([Math.fround(0.1)]));
    const ramp = await arange(size, { start: -5, step: 3 }).toArray();
    expect(ramp.every((value, i) => value === -5 + 3 * i)).toBe(true);
    const fine = await arange(size, { start: 0.5, step: 0.1, dtype: "f32" }).toArray();
    expect(fine.every((value, i) => value === Math.fround(0.5 + i * 0.1))).toBe(true);
  });

  it.each([
    [-0.3, 0.1],
    [-700, 0.7],
    [1 / 3, -1 / 30],
  ])("a ramp from %f by %f is rounded to a double once", async (start, step) => {
    const size = 2000; // near the zero the rounding of the product would dominate
    const ramp = await arange(size, { start, step, dtype: "f32" }).toArray();
    const exact = Float32Array.from({ length: size }, (_, i) => multiplyAdd(i, step, start));
    const rounded = Float32Array.from({ length: size }, (_, i) => start + i * step);
    expect(ramp).toEqual(exact);
    expect(rounded).not.toEqual(exact);
  });

  it.each([[0.5], [2 ** 31], [-(2 ** 31) - 1]])("refuse the value %f for i32", async (value) => {
    expect(() => full([2], value, { dtype: "i32" })).toThrow(
      "[full] expected a whole number of 32 bits (the tensor is i32) for value",
    );
    const x = empty([2], { dtype: "i32" });
    native.fill(x.native, value);
    await expect(x.toArray()).rejects.toThrow("[fill]");
  });

  it("refuse a ramp of i32 that leaves the range", async () => {
    await expect(arange(3, { start: 2 ** 31 - 2 }).toArray()).rejects.toThrow("the last element");
  });

  it.each([
    ["f32", "f32", 1e-6],
    ["bf16", "f32", 1e-6],
    ["f32", "bf16", 1e-2],
    ["bf16", "bf16", 1e-2],
  ] as const)("add %s to %s", async (from, to, tolerance) => {
    for (const size of [1, 31, 40_001]) {
      const [x, y] = [random([size], 1, { dtype: from }), random([size], 2, { dtype: to })];
      const [source, sum, scaled] = [toTensor(x, from), toTensor(y, to), toTensor(y, to)];
      native.accumulate(source.native, sum.native);
      await expectClose(
        sum,
        { ...y, data: y.data.map((v, i) => v + (x.data[i] as number)) },
        tolerance,
      );
      native.accumulateScaled(source.native, tensor([-0.25]).native, scaled.native);
      await expectClose(
        scaled,
        { ...y, data: y.data.map((v, i) => v - 0.25 * (x.data[i] as number)) },
        tolerance,
      );
    }
  });

  it("refuse shapes that differ, and change nothing then", async () => {
    const y = tensor([1, 2, 3]);
    native.accumulate(tensor([1, 2]).native, y.native);
    await expect(y.toArray()).rejects.toThrow("expected y of shape [2], got [3]");
    expect([...(await y.toArray())]).toEqual([1, 2, 3]);
  });
});
