/** Attention and positions that keep the documents of a window apart: `firstKey` of `attention`, `positions` of `rope`. */
import { describe, expect, it } from "vitest";
import { noGrad } from "../../lib/core/autograd.js";
import { tensor, zeros } from "../../lib/core/create.js";
import { defaultDevice } from "../../lib/core/device.js";
import { DTypeError, ShapeError } from "../../lib/core/errors.js";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { attention, attentionCached } from "../../lib/ops/attention.js";
import { rope, ropeTable } from "../../lib/ops/rope.js";
import {
  causalAttention,
  type HeadCounts,
  packedHeads,
  startsOf,
} from "../support/attention-reference.js";
import { expectOpMatches, toTensor } from "../support/float-ops.js";
import {
  expectClose,
  finiteDifferences,
  type Reference,
  random,
  reference,
  relativeError,
  tolerances,
} from "../support/reference.js";

const startsTensor = (starts: Int32Array, time: number) =>
  tensor(starts, { shape: [starts.length / time, time], dtype: "i32" });

/** A sliding window: each token sees itself and the `width - 1` tokens before it, from `start` on. */
const slidingWindow = (time: number, width: number, start = 0) =>
  Int32Array.from({ length: time }, (_, t) => Math.max(0, start, t - width + 1));

/**
 * Separate relative errors of dq, dk and dv: that of a small one must not hide behind a large one.
 */
function errorsOfParts(
  values: ArrayLike<number>,
  expected: Reference,
  { heads, kvHeads }: HeadCounts,
  size: number,
): number[] {
  const width = (heads + 2 * kvHeads) * size;
  const edges = [0, heads, heads + kvHeads, heads + 2 * kvHeads].map((head) => head * size);
  return [0, 1, 2].map((part) => {
    const inside = (_: number, i: number) =>
      i % width >= edges[part]! && i % width < edges[part + 1]!;
    return relativeError(
      Array.from(values).filter(inside),
      Array.from(expected.data).filter(inside),
    );
  });
}

it("has a float64 reference with the gradient of finite differences", () => {
  const counts = { heads: 2, kvHeads: 1 };
  const starts = startsOf([[2, 1, 3]], 7);
  expect([...starts]).toEqual([0, 0, 2, 3, 3, 3, 6]);
  const qkv = packedHeads(1, 7, counts, 4, 1);
  const dO = random([1, 7, 8], 2);
  const composed = (x: Reference) => causalAttention(x, counts, null, starts).o;
  const [expected] = finiteDifferences(composed, [qkv], dO) as [Reference];
  const { dqkv } = causalAttention(qkv, counts, dO, starts);
  expect(relativeError(dqkv.data, expected.data)).toBeLessThan(1e-8);
});

describe.each(["f32", "bf16"] as const)("attention within documents in %s", (dtype) => {
  // Tiles of the kernels have 16, 32, 64, 128 or 192 rows. Documents end at these edges, one before
  // and one after. Short documents mask most of a tile. Some have one token, and some windows are
  // one document.
  it.each<[number, number, number, number, number[][]]>([
    [31, 64, 4, 1, [[3, 1, 9, 5], [31]]],
    [64, 64, 4, 2, [[63, 1], [1]]],
    [65, 96, 2, 1, [[64], [32, 16, 15, 1, 2]]],
    [129, 34, 3, 1, [[63, 2, 64], [128]]],
    [200, 80, 2, 1, [[65, 62, 66], [7]]],
    [
      257,
      64,
      2,
      1,
      [
        [127, 2, 127],
        [1, 190, 66],
      ],
    ],
    [
      321,
      128,
      2,
      1,
      [
        [128, 63],
        [250, 1, 1, 70],
      ],
    ],
    [
      385,
      64,
      2,
      2,
      [
        [5, 187, 192],
        [129, 1, 126, 129],
      ],
    ],
    [400, 96, 2, 1, [[192], [20, 300, 3]]],
  ])(
    "is right in value and gradient at time %i, head size %i, heads %i of %i, documents of %j",
    async (time, size, heads, kvHeads, lengths) => {
      using _ = scope();
      const counts = { heads, kvHeads };
      const starts = startsOf(lengths, time);
      const qkv = packedHeads(2, time, counts, size, 3, dtype);
      const dO = random([2, time, heads * size], 4, { dtype });
      const expected = causalAttention(qkv, counts, dO, starts);
      const leaf = toTensor(qkv, dtype, true);
      const o = attention(leaf, { ...counts, firstKey: startsTensor(starts, time) });
      await expectClose(o, expected.o);
      o.backward({ gradient: toTensor(dO, dtype) });
      const gradient = leaf.grad as Tensor;
      await expectClose(gradient, expected.dqkv, tolerances[dtype].gradient);
      const errors = errorsOfParts(await gradient.toArray(), expected.dqkv, counts, size);
      for (const error of errors) expect(error).toBeLessThan(tolerances[dtype].gradient);
    },
  );

  it.each([
    [200, 64],
    [130, 24],
  ])("of one document has the bits of attention without, time %i, head size %i", async (...at) => {
    const [time, size] = at;
    const counts = { heads: 4, kvHeads: 2 };
    const run = async (options: object) => {
      using _ = scope();
      const leaf = toTensor(packedHeads(2, time, counts, size, 5, dtype), dtype, true);
      const o = attention(leaf, { ...counts, ...options });
      o.backward({ gradient: toTensor(random(o.shape, 6, { dtype }), dtype) });
      return [await o.toArray(), await (leaf.grad as Tensor).toArray()];
    };
    const firstKey = zeros([2, time], { dtype: "i32" });
    expect(await run({ firstKey })).toEqual(await run({}));
  });

  it("depends on nothing of other documents, and passes them no gradient", async () => {
    const counts = { heads: 2, kvHeads: 1 };
    const [time, size] = [300, 64];
    const starts = startsOf([[90, 110]], time);
    const run = async (from: number, to: number) => {
      using _ = scope();
      const qkv = packedHeads(1, time, counts, size, 7, dtype);
      const other = packedHeads(1, time, counts, size, 8, dtype);
      qkv.data.set(other.data.subarray(from * 256, to * 256), from * 256);
      const leaf = toTensor(qkv, dtype, true);
      const o = attention(leaf, { ...counts, firstKey: startsTensor(starts, time) });
      const dO = random(o.shape, 9, { dtype });
      dO.data.fill(0, 200 * 128);
      o.backward({ gradient: toTensor(dO, dtype) });
      return [[...(await o.toArray())], [...(await (leaf.grad as Tensor).toArray())]] as const;
    };
    const [o, gradient] = await run(0, 0);
    const [changed, changedGradient] = await run(90, 200);
    for (const [x, y, width] of [
      [o, changed, 128],
      [gradient, changedGradient, 256],
    ] as const) {
      expect(y.slice(0, 90 * width)).toEqual(x.slice(0, 90 * width));
      expect(y.slice(200 * width)).toEqual(x.slice(200 * width));
      expect(y.slice(90 * width, 200 * width)).not.toEqual(x.slice(90 * width, 200 * width));
    }
    expect(gradient.slice(200 * 256).every((value) => value === 0)).toBe(true);
  });

  it("stays finite for scores that overflow an exponential", async () => {
    const counts = { heads: 1, kvHeads: 1 };
    const qkv = packedHeads(1, 150, counts, 64, 10, dtype);
    const data = qkv.data.map((v, i) => (i % 192 < 128 ? Math.round(v) * 32 : v));
    const starts = startsOf([[40, 70]], 150);
    const large = { shape: qkv.shape, data };
    const y = attention(toTensor(large, dtype), {
      ...counts,
      firstKey: startsTensor(starts, 150),
    });
    await expectClose(y, causalAttention(large, counts, null, starts).o);
  });

  // A window moves with its token: within one tile, over a whole one, over several, and within a document.
  it.each<[number, number, number, Int32Array]>([
    [65, 64, 2, slidingWindow(65, 2)],
    [130, 34, 5, slidingWindow(130, 5)],
    [210, 64, 70, slidingWindow(210, 70)],
    [257, 64, 64, slidingWindow(257, 64)],
    [321, 128, 127, slidingWindow(321, 127)],
    [400, 96, 193, slidingWindow(400, 193)],
    [300, 64, 90, slidingWindow(300, 90).map((first, t) => Math.max(first, t < 150 ? 0 : 150))],
  ])(
    "is right in a sliding window: time %i, head size %i, %i tokens",
    async (time, size, _width, firstKey) => {
      using _ = scope();
      const counts = { heads: 2, kvHeads: 1 };
      const qkv = packedHeads(1, time, counts, size, 11, dtype);
      const dO = random([1, time, 2 * size], 12, { dtype });
      const expected = causalAttention(qkv, counts, dO, firstKey);
      const leaf = toTensor(qkv, dtype, true);
      const o = attention(leaf, { ...counts, firstKey: startsTensor(firstKey, time) });
      await expectClose(o, expected.o);
      o.backward({ gradient: toTensor(dO, dtype) });
      const gradient = leaf.grad as Tensor;
      await expectClose(gradient, expected.dqkv, tolerances[dtype].gradient);
      const errors = errorsOfParts(await gradient.toArray(), expected.dqkv, counts, size);
      for (const error of errors) expect(error).toBeLessThan(tolerances[dtype].gradient);
    },
  );

  it("turns positions that count from the start of each document, with gradient", async () => {
    const [time, heads, rotatedHeads] = [9, 3, 2];
    const starts = startsOf([[4, 1, 3], [9]], time);
    for (const [size, first] of [
      [16, 0],
      [6, 50],
    ] as const) {
      const positions = starts.map((start, token) => first + (token % time) - start);
      const composed = (x: Reference): Reference =>
        reference(x.shape, (index) => {
          const head = Math.floor((index % (heads * size)) / size);
          if (head >= rotatedHeads) return x.data[index]!;
          const [i, token] = [index % size, Math.floor(index / (heads * size))];
          const angle = positions[token]! * 500 ** ((-2 * (i % (size / 2))) / size);
          const other = i < size / 2 ? -x.data[index + size / 2]! : x.data[index - size / 2]!;
          return x.data[index]! * Math.cos(angle) + other * Math.sin(angle);
        });
      const options = { heads, rotatedHeads };
      await expectOpMatches(
        (x) =>
          rope(x, ropeTable(64, size, 500), {
            ...options,
            positions: startsTensor(positions, time),
          }),
        composed,
        [random([2, time, heads * size], 13)],
        dtype,
      );
    }
  });
});

describe("a bad first key", () => {
  const counts = { heads: 4, kvHeads: 2 };
  const attend = (firstKey: unknown) =>
    attention(zeros([2, 5, 32]), { ...counts, firstKey: firstKey as Tensor });
  const attendCached = (firstKey: unknown) =>
    attentionCached(zeros([2, 5, 32]), zeros([2, 2, 2, 9, 4]), {
      ...counts,
      position: 2,
      firstKey: firstKey as Tensor,
    });

  it.each([
    ["attention", attend],
    ["attentionCached", attendCached],
  ] as const)("is refused by %s", (op, run) => {
    for (const shape of [[2, 4], [5, 2], [10], [2, 5, 1]]) {
      expect(() => run(zeros(shape, { dtype: "i32" }))).toThrow(ShapeError);
    }
    expect(() => run(zeros([2, 5]))).toThrow(DTypeError);
    expect(() => run(zeros([2, 5]))).toThrow(`[${op}] expected dtype i32 for firstKey`);
    expect(() => run([0, 0])).toThrow("expected a tensor for firstKey");
  });

  const wrong = [
    ["one after its token", [0, 0, 3, 3, 3]],
    ["one that falls", [0, 1, 1, 0, 0]],
    ["a negative one", [0, -1, 0, 0, 0]],
  ] as const;
  // A GPU's kernels cannot refuse values that only the device knows. They stay within their tensors
  // for any values.
  const onCpu = defaultDevice().type === "cpu";
  it.runIf(onCpu).each(wrong)("fails at the next wait on the CPU: %s", async (_, row) => {
    const values = (more: number) =>
      tensor([[0, 0, 0, 0, 0], row.map((first) => first && first + more)], { dtype: "i32" });
    await expect(attend(values(0)).toArray()).rejects.toThrow(/\[attentionForward\] first_key\[1,/);
    // Over the cache a token may see up to its own row, which is 2 further.
    const cached = attendCached(values(row[1] < 0 ? 0 : 2));
    await expect(cached.toArray()).rejects.toThrow(/\[attentionCached\] first_key\[1,/);
  });
  it.runIf(!onCpu).each(wrong)("gives some finite result on a GPU: %s", async (_, row) => {
    for (const [dtype, size] of [
      ["f32", 16],
      ["bf16", 16],
      ["bf16", 64],
    ] as const) {
      const time = 300;
      const values = Int32Array.from({ length: time }, (_, t) => row[t % 5]! * (t % 7 ? 1 : 1e9));
      const firstKey = startsTensor(values, time);
      const leaf = toTensor(packedHeads(1, time, { heads: 2, kvHeads: 1 }, size, 14), dtype, true);
      const o = attention(leaf, { heads: 2, kvHeads: 1, firstKey });
      o.backward({ gradient: toTensor(random(o.shape, 15), dtype) });
      const cache = zeros([1, 2, 1, time + 1, size], { dtype });
      const cached = noGrad(() =>
        attentionCached(leaf, cache, { heads: 2, kvHeads: 1, position: 1, firstKey }),
      );
      for (const x of [o, leaf.grad as Tensor, cached]) {
        expect([...(await x.toArray())].every(Number.isFinite)).toBe(true);
      }
    }
  });
});
