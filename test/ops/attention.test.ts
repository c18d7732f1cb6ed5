import { execFileSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import { noGrad } from "../../lib/core/autograd.js";
import { tensor, zeros } from "../../lib/core/create.js";
import { ArgumentError, AutogradError, DTypeError, ShapeError } from "../../lib/core/errors.js";
import { memory, resetPeakMemory, synchronize } from "../../lib/core/runtime.js";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import {
  type AttentionOptions,
  attention,
  attentionCached,
  attentionTogether,
  composedAttention,
} from "../../lib/ops/attention.js";
import { concat, slice } from "../../lib/ops/slice.js";
import { causalAttention, packedHeads, startsOf } from "../support/attention-reference.js";
import { expectComposed } from "../support/composed.js";
import { expectOpMatches, toTensor } from "../support/float-ops.js";
import {
  expectClose,
  finiteDifferences,
  type Reference,
  random,
  relativeError,
  tolerances,
} from "../support/reference.js";

describe("the float64 attention that the kernels are compared with", () => {
  it("has the gradient of finite differences", () => {
    for (const counts of [
      { heads: 4, kvHeads: 2 },
      { heads: 2, kvHeads: 1, scale: 0.7 },
    ]) {
      const qkv = packedHeads(2, 6, counts, 4);
      const dO = random([2, 6, counts.heads * 4], 2);
      const [expected] = finiteDifferences(
        (x) => causalAttention(x, counts, null).o,
        [qkv],
        dO,
      ) as [Reference];
      const { dqkv } = causalAttention(qkv, counts, dO);
      expect(relativeError(dqkv.data, expected.data)).toBeLessThan(1e-8);
    }
  });
});

describe.each(["f32", "bf16"] as const)("attention in %s", (dtype) => {
  it("equals softmax(q kᵀ) v, and its gradient finite differences", async () => {
    for (const [options, time, size] of [
      [{ heads: 1, kvHeads: 1 }, 1, 2],
      [{ heads: 2, kvHeads: 2 }, 5, 6],
      [{ heads: 4, kvHeads: 2, scale: 0.6 }, 7, 4],
      [{ heads: 3, kvHeads: 1 }, 4, 16],
    ] as const) {
      const composed = (x: Reference) => causalAttention(x, options, null).o;
      await expectOpMatches(
        (x) => attention(x, options),
        composed,
        [packedHeads(2, time, options, size)],
        dtype,
      );
    }
  });

  // Tiles have 64 rows. Head sizes lie around one and two vectors of every instruction set, and
  // include those of the fast kernels.
  it.each([
    [31, 64, 4, 1],
    [63, 64, 2, 2],
    [64, 64, 4, 2],
    [65, 96, 2, 1],
    [127, 128, 2, 1],
    [129, 34, 3, 1],
    [200, 80, 2, 1],
  ])(
    "is right in value and gradient at time %i, head size %i, heads %i of %i",
    async (time, size, heads, kvHeads) => {
      const options = { heads, kvHeads };
      const qkv = packedHeads(1, time, options, size, 3, dtype);
      const dO = random([1, time, heads * size], 4, { dtype });
      const expected = causalAttention(qkv, options, dO);
      const leaf = toTensor(qkv, dtype, true);
      const o = attention(leaf, options);
      await expectClose(o, expected.o);
      o.backward({ gradient: toTensor(dO, dtype) });
      await expectClose(leaf.grad as Tensor, expected.dqkv, tolerances[dtype].gradient);
      const values = await (leaf.grad as Tensor).toArray();
      const width = (heads + 2 * kvHeads) * size;
      const columns = (x: ArrayLike<number>, from: number, to: number) =>
        Array.from(x).filter((_, i) => i % width >= from && i % width < to);
      const edges = [0, heads, heads + kvHeads, heads + 2 * kvHeads].map((head) => head * size);
      for (const part of [0, 1, 2]) {
        // dq, dk and dv are compared separately: the error of a small one must not hide behind a
        // large one.
        const [from, to] = [edges[part] as number, edges[part + 1] as number];
        const error = relativeError(
          columns(values, from, to),
          columns(expected.dqkv.data, from, to),
        );
        expect(error).toBeLessThan(tolerances[dtype].gradient);
      }
    },
  );

  it("does not let a token see a later one", async () => {
    const options = { heads: 2, kvHeads: 1 };
    const qkv = packedHeads(1, 130, options, 64, 5, dtype);
    const before = await attention(toTensor(qkv, dtype), options).toArray();
    const changed = {
      shape: qkv.shape,
      data: qkv.data.map((v, i) => (i >= 70 * 256 ? -3 * v : v)),
    };
    const after = await attention(toTensor(changed, dtype), options).toArray();
    expect(after.slice(0, 70 * 128)).toEqual(before.slice(0, 70 * 128));
    expect(after.slice(70 * 128)).not.toEqual(before.slice(70 * 128));
  });

  it("stays finite for scores that overflow an exponential", async () => {
    const options = { heads: 1, kvHeads: 1 };
    const qkv = packedHeads(1, 90, options, 64, 6, dtype);
    const large = {
      shape: qkv.shape,
      data: qkv.data.map((v, i) => (i % 192 < 128 ? Math.round(v) * 32 : v)),
    };
    const y = attention(toTensor(large, dtype), options);
    await expectClose(y, causalAttention(large, options, null).o);
  });

  it("passes a NaN on to the tokens that see it", async () => {
    const options = { heads: 1, kvHeads: 1 };
    const qkv = packedHeads(1, 80, options, 16, 7, dtype);
    qkv.data[40 * 48 + 3] = Number.NaN; // in the query of token 40
    const y = await attention(toTensor(qkv, dtype), options).toArray();
    const broken = new Set([...y].flatMap((v, i) => (Number.isNaN(v) ? [Math.floor(i / 16)] : [])));
    expect(broken).toEqual(new Set([40]));
  });

  it("has equal bits over cached and new tokens together and over all tokens at once", async () => {
    using _ = scope();
    const options = { heads: 4, kvHeads: 2 };
    const qkv = packedHeads(2, 90, options, 64, 13, dtype);
    const all = toTensor(qkv, dtype);
    const at = (start: number, end: number) => slice(all, { 1: [start, end] });
    const caches = [0, 1].map(() => zeros([2, 2, 2, 100, 64], { dtype })) as [Tensor, Tensor];
    for (const cache of caches) attentionCached(at(0, 70), cache, { ...options, position: 0 });
    const rest = { ...options, position: 70 };
    const together = await attentionTogether(at(70, 90), caches[0], rest).toArray();
    const apart = await attentionCached(at(70, 90), caches[1], rest).toArray();
    const whole = await slice(attention(all, options), { 1: [70, 90] }).toArray();
    expect(together).toEqual(whole);
    expect(relativeError(together, apart)).toBeLessThan(tolerances[dtype].forward);
    expect(await caches[0].toArray()).toEqual(await caches[1].toArray());
  });

  it("continues over a cache as if all tokens had come at once", async () => {
    for (const [size, capacity] of [
      [64, 100],
      [10, 41],
    ] as const) {
      const options = { heads: 4, kvHeads: 2 };
      const qkv = packedHeads(2, 41, options, size, 8, dtype);
      const width = 8 * size;
      const cache = zeros([2, 2, 2, capacity, size], { dtype });
      const rows: number[][][] = [[], []];
      let position = 0;
      for (const count of [20, 1, 1, 19]) {
        const part = random([2, count, width], 0);
        for (let b = 0; b < 2; ++b) {
          const start = (b * 41 + position) * width;
          part.data.set(qkv.data.subarray(start, start + count * width), b * count * width);
        }
        const o = attentionCached(toTensor(part, dtype), cache, { ...options, position });
        const values = await o.toArray();
        for (let b = 0; b < 2; ++b)
          rows[b]?.push([...values.slice(b * count * 4 * size, (b + 1) * count * 4 * size)]);
        position += count;
      }
      const expected = causalAttention(qkv, options, null).o;
      expect(relativeError(rows.flat(2), expected.data)).toBeLessThan(tolerances[dtype].forward);
    }
  });
});

describe.each(["f32", "bf16"] as const)(
  "attention over a cache with a first key in %s",
  (dtype) => {
    // Parts of a window of documents, and of a sliding window; chunks of 32 keys and tiles of 64 begin between first keys.
    const time = 141;
    const documents = startsOf([[33, 1, 40, 67], [141]], time);
    const sliding = Int32Array.from({ length: 2 * time }, (_, i) => Math.max(0, (i % time) - 49));
    it.each<[string, number, number[], Int32Array]>([
      ["documents", 64, [70, 1, 1, 69], documents],
      ["documents", 10, [1, 34, 106], documents],
      ["a sliding window", 64, [20, 90, 1, 1, 29], sliding],
      ["a sliding window", 12, [141], sliding],
    ])(
      "equals the rows of plain attention: %s, head size %i, tokens %j",
      async (_name, size, counts, first) => {
        using _ = scope();
        const options = { heads: 4, kvHeads: 2 };
        const qkv = packedHeads(2, time, options, size, 8, dtype);
        const all = toTensor(qkv, dtype);
        const firstKey = tensor(first, { shape: [2, time] });
        const cache = zeros([2, 2, 2, time + 3, size], { dtype });
        const parts: Tensor[] = [];
        let position = 0;
        for (const count of counts) {
          const end = position + count;
          const [part, firstOfPart] = [all, firstKey].map((x) => slice(x, { 1: [position, end] }));
          parts.push(
            attentionCached(part as Tensor, cache, { ...options, position, firstKey: firstOfPart }),
          );
          position = end;
        }
        const values = await concat(parts, 1).toArray();
        const plain = await attention(all, { ...options, firstKey }).toArray();
        const tolerance = tolerances[dtype].forward;
        expect(
          relativeError(values, causalAttention(qkv, options, null, first).o.data),
        ).toBeLessThan(tolerance);
        expect(relativeError(values, plain)).toBeLessThan(tolerance);
      },
    );

    it("of zeros has the bits of attention without", async () => {
      // So few tokens after so many are computed by the kernel for generation on every device.
      const options = { heads: 4, kvHeads: 2, position: 600 };
      const qkv = toTensor(packedHeads(2, 9, options, 64, 9, dtype), dtype);
      const run = (more: object) => {
        const filled = toTensor(random([2, 2, 2, 620, 64], 10, { dtype }), dtype);
        return attentionCached(qkv, filled, { ...options, ...more }).toArray();
      };
      expect(await run({ firstKey: zeros([2, 9], { dtype: "i32" }) })).toEqual(await run({}));
    });

    it("reads nothing before it", async () => {
      const options = { heads: 4, kvHeads: 2, position: 40 };
      const qkv = toTensor(packedHeads(1, 2, options, 64, 11, dtype), dtype);
      const rows = random([1, 2, 2, 60, 64], 12, { dtype });
      const broken = {
        shape: rows.shape,
        data: rows.data.map((v, i) => (Math.floor(i / 64) % 60 < 37 ? Number.NaN : v)),
      };
      const firstKey = tensor([[37, 38]], { dtype: "i32" });
      const run = (cache: Reference) =>
        attentionCached(qkv, toTensor(cache, dtype), { ...options, firstKey }).toArray();
      const values = await run(broken);
      expect([...values].every(Number.isFinite)).toBe(true);
      expect(values).toEqual(await run(rows));
    });
  },
);

it("gives the same bits with one thread and with two", () => {
  const run = (threads: number) =>
    JSON.parse(
      execFileSync(process.execPath, ["test/support/thread-bits.mjs"], {
        env: { ...process.env, LLAMAFORGE_THREADS: String(threads) },
        encoding: "utf8",
      }),
    ) as Record<string, unknown>;
  const [one, two] = [run(1), run(2)];
  expect([one.threads, two.threads]).toEqual([1, 2]);
  delete one.threads;
  delete two.threads;
  expect(Object.keys(one)).toHaveLength(8);
  expect(two).toEqual(one);
});

it("needs memory in proportion to time, not to its square", async () => {
  const peak = async (time: number) => {
    using _ = scope();
    const qkv = zeros([1, time, 48], { requiresGrad: true });
    await synchronize();
    resetPeakMemory();
    const before = memory().bytes;
    const y = attention(qkv, { heads: 1, kvHeads: 1 });
    y.backward({ gradient: zeros(y.shape) });
    await synchronize();
    return memory().peakBytes - before;
  };
  const [short, long] = [await peak(2048), await peak(4096)];
  expect(long).toBeGreaterThan(short);
  expect(long / short).toBeLessThan(2.5); // a matrix of scores would take 4 times as much
});

it.each<[number, number, number, number]>([
  [1, 2, 1, 1],
  [7, 4, 4, 2],
  [65, 64, 2, 1],
  [90, 34, 3, 3],
])(
  "equals its composed form in value and gradient: time %i, head size %i, heads %i of %i",
  async (time, size, heads, kvHeads) => {
    const starts = startsOf([[3, 1], [Math.ceil(time / 2)]], time);
    const firstKey = tensor(starts, { shape: [2, time], dtype: "i32" });
    for (const more of [{}, { scale: 0.3 }, { firstKey }]) {
      const of = (op: typeof attention) => (qkv: Tensor) => op(qkv, { heads, kvHeads, ...more });
      const qkv = packedHeads(2, time, { heads, kvHeads }, size, 11);
      await expectComposed(of(attention), of(composedAttention), [qkv]);
    }
  },
);

describe("bad input to attention", () => {
  const qkv = () => zeros([2, 5, 8 * 4]);
  const cache = () => zeros([2, 2, 2, 9, 4]);
  const good = { heads: 4, kvHeads: 2 };
  it.each<[string, () => unknown, new (...a: never[]) => Error, string]>([
    ["two axes", () => attention(zeros([5, 32]), good), ShapeError, "expected 3 axes for qkv"],
    [
      "heads that do not fit",
      () => attention(qkv(), { heads: 5, kvHeads: 5 }),
      ShapeError,
      "5 query, 5 key",
    ],
    [
      "kv heads that do not divide",
      () => attention(qkv(), { heads: 4, kvHeads: 3 }),
      ArgumentError,
      "a divisor of heads 4",
    ],
    [
      "more kv heads than heads",
      () => attention(qkv(), { heads: 2, kvHeads: 4 }),
      ArgumentError,
      "kvHeads",
    ],
    ["no heads", () => attention(qkv(), {} as AttentionOptions), ArgumentError, "heads"],
    ["a negative scale", () => attention(qkv(), { ...good, scale: -1 }), ArgumentError, "scale"],
    [
      "a scale of NaN",
      () => attention(qkv(), { ...good, scale: Number.NaN }),
      ArgumentError,
      "scale",
    ],
    [
      "integers",
      () => attention(zeros([2, 5, 32], { dtype: "i32" }), good),
      DTypeError,
      "f32 or bf16",
    ],
    [
      "an unknown option",
      () => attention(qkv(), { ...good, causal: true } as never),
      ArgumentError,
      "causal",
    ],
    [
      "a full cache",
      () => attentionCached(qkv(), cache(), { ...good, position: 5 }),
      ShapeError,
      "room for 10 tokens",
    ],
    [
      "a cache of other heads",
      () => attentionCached(qkv(), zeros([2, 2, 4, 9, 4]), { ...good, position: 0 }),
      ShapeError,
      "cache",
    ],
    [
      "a cache of another dtype",
      () =>
        attentionCached(qkv(), zeros([2, 2, 2, 9, 4], { dtype: "bf16" }), { ...good, position: 0 }),
      DTypeError,
      "one dtype",
    ],
    [
      "a negative position",
      () => attentionCached(qkv(), cache(), { ...good, position: -1 }),
      ArgumentError,
      "position",
    ],
    [
      "a gradient through the cache",
      () =>
        attentionCached(zeros([2, 5, 32], { requiresGrad: true }), cache(), {
          ...good,
          position: 0,
        }),
      AutogradError,
      "noGrad",
    ],
  ])("refuses %s", (_, call, type, message) => {
    expect(call).toThrow(type);
    expect(call).toThrow(message);
  });

  it("takes a tensor that requires a gradient over the cache inside noGrad", async () => {
    const leaf = zeros([2, 5, 32], { requiresGrad: true });
    const o = noGrad(() => attentionCached(leaf, cache(), { ...good, position: 4 }));
    expect([...(await o.toArray())].every((v) => v === 0)).toBe(true);
  });
});
