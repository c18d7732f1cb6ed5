// Attention with scores so large that rounding exceeds their differences from the maximum. At 1e8
// floats are 8 apart. A maximum that is scaled by itself, or a log-sum-exp in one float, is then
// wrong by factors of e^4.
import { describe, expect, it } from "vitest";
import { noGrad } from "../../lib/core/autograd.js";
import { ones, tensor, zeros } from "../../lib/core/create.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { attention, attentionCached } from "../../lib/ops/attention.js";
import { causalAttention, packedHeads, startsOf } from "../support/attention-reference.js";
import { toTensor } from "../support/float-ops.js";
import { random, relativeError, tolerances } from "../support/reference.js";

/** Values of s whose squares reach nearly the largest float. */
const squares = [1e4, 1e6, 1e7, 1e8, 3.6e9, 1e12, 1e20, 1e30, 1e38];

/**
 * The value, and the gradients of q, k and v, for one head of one number and a gradient of ones.
 */
async function headOfOne(rows: number[][], dtype: "f32" | "bf16") {
  const qkv = tensor([rows], { dtype, requiresGrad: true });
  const o = attention(qkv, { heads: 1 });
  o.backward({ gradient: ones(o.shape, { dtype }) });
  const gradient = Array.from(await (qkv.grad as Tensor).toArray());
  const column = (i: number) => gradient.filter((_, at) => at % 3 === i);
  return { o: Array.from(await o.toArray()), dq: column(0), dk: column(1), dv: column(2) };
}

describe.each(["f32", "bf16"] as const)("attention of large scores in %s", (dtype) => {
  it.each(squares)("gives a key that wins by far the whole weight: s² = %f", async (square) => {
    const s = Math.sqrt(square);
    // bf16 does not tell 1.001 from 1.
    const more = square < 1e7 || dtype === "bf16" ? 1.5 : 1.001;
    const { o, dq, dk, dv } = await headOfOne(
      [
        [s, s, 1],
        [s, more * s, 2],
        [s, -s, 3],
      ],
      dtype,
    );
    expect({ o, dv }).toEqual({ o: [1, 2, 2], dv: [1, 2, 0] });
    expect([...dq, ...dk].map(Math.abs)).toEqual([0, 0, 0, 0, 0, 0]);
  });

  it.each(squares)("shares the weight among keys that are equal: s² = %f", async (square) => {
    const s = Math.sqrt(square);
    for (const sign of [1, -1]) {
      const { o, dq, dk, dv } = await headOfOne(
        [1, 2, 3].map((value) => [s, sign * s, value]),
        dtype,
      );
      const { forward } = tolerances[dtype];
      expect(relativeError(o, [1, 1.5, 2])).toBeLessThan(forward);
      expect(relativeError(dv, [1 + 1 / 2 + 1 / 3, 1 / 2 + 1 / 3, 1 / 3])).toBeLessThan(forward);
      expect([...dq, ...dk].every(Number.isFinite)).toBe(true);
    }
  });

  // Queries with soft, sharp and hard softmaxes side by side; blocks of the backward pass with and
  // without large scores.
  it.each([
    [16, "mixed"],
    [64, "mixed"],
    [96, "mixed"],
    [128, "mixed"],
    [64, "the first tokens alone are large"],
    [128, "the last tokens alone are large"],
  ])("is right beside ordinary ones: head size %i, %s", async (size, pattern) => {
    const [time, options] = [200, { heads: 2, kvHeads: 1, scale: 0.125 }];
    const qkv = packedHeads(1, time, options, size, 3, dtype);
    const width = 4 * size;
    const isLarge = (t: number) =>
      pattern === "mixed" ? t % 3 === 0 : pattern.includes("first") ? t < 60 : t >= 160;
    for (let t = 0; t < time; ++t) {
      // All numbers of q and k but the first of each head are 0, and products exact.
      const row = qkv.data.subarray(t * width, (t + 1) * width);
      row.fill(0, 0, 3 * size);
      row[0] = isLarge(t) ? 2 ** 26 : t % 2 ? 1 : 2 ** -10;
      row[size] = isLarge(t) ? -(2 ** 16) : 1;
      row[2 * size] = 16 * (1 + (t % 7) / 16);
    }
    const dO = random([1, time, 2 * size], 4, { dtype });
    const lengths = [[200], [70, 27, 103]];
    for (const starts of [null, startsOf(lengths.slice(1), time)]) {
      const leaf = toTensor(qkv, dtype, true);
      const firstKey = starts ? tensor(starts, { shape: [1, time], dtype: "i32" }) : undefined;
      const o = attention(leaf, { ...options, firstKey });
      o.backward({ gradient: toTensor(dO, dtype) });
      const expected = causalAttention(qkv, options, dO, starts);
      const values = await o.toArray();
      expect(relativeError(values, expected.o.data)).toBeLessThan(tolerances[dtype].forward);
      const gradient = await (leaf.grad as Tensor).toArray();
      const ofValues = (x: ArrayLike<number>) =>
        Array.from(x).filter((_, i) => i % width >= 3 * size);
      const error = relativeError(ofValues(gradient), ofValues(expected.dqkv.data));
      expect(error).toBeLessThan(tolerances[dtype].gradient);
      expect(gradient.every(Number.isFinite)).toBe(true);
      if (starts) continue;
      const cache = zeros([1, 2, 1, time, size], { dtype });
      const rows = noGrad(() => [
        attentionCached(slice(qkv, 0, 130, dtype), cache, { ...options, position: 0 }),
        attentionCached(slice(qkv, 130, time, dtype), cache, { ...options, position: 130 }),
      ]);
      const cached = [];
      for (const part of rows) cached.push(...(await part.toArray()));
      expect(relativeError(cached, expected.o.data)).toBeLessThan(tolerances[dtype].forward);
    }
  });
});

/** Tokens from..to of a window. */
function slice(
  { shape, data }: { shape: readonly number[]; data: Float64Array },
  from: number,
  to: number,
  dtype: "f32" | "bf16",
): Tensor {
  const width = shape[2] as number;
  const part = { shape: [1, to - from, width], data: data.slice(from * width, to * width) };
  return toTensor(part, dtype);
}
