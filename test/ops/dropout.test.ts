import { describe, expect, it } from "vitest";
import { tensor } from "../../lib/core/create.js";
import { ArgumentError, DTypeError } from "../../lib/core/errors.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { composedDropout, dropout } from "../../lib/ops/dropout.js";
import { expectComposed } from "../support/composed.js";
import { toTensor } from "../support/float-ops.js";
import { type FloatDType, random, reference } from "../support/reference.js";

/** Which of the first `size` elements from `offset` on are kept. */
async function keptOf(size: number, options: { rate: number; seed: number; offset?: number }) {
  const y = await dropout(toTensor(reference([size], () => 1)), options).toArray();
  return Float64Array.from(y, (value) => (value === 0 ? 0 : 1));
}

describe.each(["f32", "bf16"] as const)("dropout in %s", (dtype: FloatDType) => {
  it.each([
    [[7], 0],
    [[5, 33], 3],
    [[3, 4, 1021], 2 ** 34 - 5],
  ])("drops elements of %j from offset %i on, and scales the others", async (shape, offset) => {
    const x = random(shape, 1, { low: 0.5, high: 1.5, dtype });
    const size = x.data.length;
    const options = { rate: 0.5, seed: 11, offset };
    const kept = await keptOf(size, options);
    const leaf = toTensor(x, dtype, true);
    const y = dropout(leaf, options);
    expect([...(await y.toArray())]).toEqual([...x.data].map((value, i) => 2 * value * kept[i]!));
    y.backward({ gradient: toTensor(x, dtype) });
    // The gradient drops what the forward pass dropped.
    expect([...(await (leaf.grad as Tensor).toArray())]).toEqual(
      [...x.data].map((value, i) => 2 * value * kept[i]!),
    );
    // An element depends on its place in the sequence alone.
    const later = await keptOf(size - 3, { ...options, offset: offset + 3 });
    expect([...later]).toEqual([...kept.subarray(3)]);
  });

  it.each([0, 0.05, 0.3, 0.9])("drops a share of %d, and keeps the mean", async (rate) => {
    const size = 200_000;
    const ones = tensor(new Float32Array(size).fill(1), { dtype });
    const y = await dropout(ones, { rate, seed: 5 }).toArray();
    const dropped = y.filter((value) => value === 0).length / size;
    // Five standard deviations.
    expect(Math.abs(dropped - rate)).toBeLessThanOrEqual(5 * Math.sqrt((rate * (1 - rate)) / size));
    const scale = [...y].reduce((most, value) => Math.max(most, value), 0);
    expect(Math.abs(scale * (1 - rate) - 1)).toBeLessThan(dtype === "bf16" ? 2 ** -8 : 1e-6);
  });
});

it("equals its composed form", async () => {
  const options = { rate: 0.25, seed: 3, offset: 9 };
  const kept = reference([6, 50], () => 0);
  kept.data.set(await keptOf(300, options));
  await expectComposed(
    (x) => dropout(x, options),
    (x) => composedDropout(x, toTensor(kept), options.rate),
    [random([6, 50], 2)],
  );
});

it("has other numbers for another seed", async () => {
  const [a, b] = await Promise.all([1, 2].map((seed) => keptOf(64, { rate: 0.5, seed })));
  expect([...(a ?? [])]).not.toEqual([...(b ?? [])]);
});

it("names what is wrong with its arguments", () => {
  const x = toTensor(reference([2], () => 1));
  for (const rate of [1, -0.1, Number.NaN, "0.5" as unknown as number]) {
    expect(() => dropout(x, { rate, seed: 1 })).toThrow(ArgumentError);
    expect(() => dropout(x, { rate, seed: 1 })).toThrow(/from 0 to below 1 for rate/);
  }
  expect(() => dropout(x, { rate: 0.5, seed: 0.5 })).toThrow(/seed/);
  expect(() => dropout(x, { rate: 0.5, seed: 1, offset: -1 })).toThrow(/offset/);
  const whole = tensor([1, 2], { dtype: "i32" });
  expect(() => dropout(whole, { rate: 0.5, seed: 1 })).toThrow(DTypeError);
});
