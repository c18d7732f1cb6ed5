import { describe, expect, it } from "vitest";
import { ArgumentError } from "../../lib/core/errors.js";
import { memory } from "../../lib/core/runtime.js";
import { rand, randn } from "../../lib/ops/random.js";
import { relativeError, roundToBf16 } from "../support/reference.js";

/** Philox4x32-10 from the paper, one block. */
function philox(counter: readonly number[], key: readonly number[]): number[] {
  let [c0, c1, c2, c3] = counter.map((word) => BigInt(word)) as [bigint, bigint, bigint, bigint];
  let [k0, k1] = key.map((word) => BigInt(word)) as [bigint, bigint];
  const low = (value: bigint): bigint => value & 0xffffffffn;
  for (let round = 0; round < 10; round++) {
    const [p0, p1] = [c0 * 0xd2511f53n, c2 * 0xcd9e8d57n];
    [c0, c1, c2, c3] = [(p1 >> 32n) ^ c1 ^ k0, low(p1), (p0 >> 32n) ^ c3 ^ k1, low(p0)];
    [k0, k1] = [low(k0 + 0x9e3779b9n), low(k1 + 0xbb67ae85n)];
  }
  return [c0, c1, c2, c3].map(Number);
}

/** The 32 random bits of element `index`, as csrc/cpu/philox.h lays the sequence out. */
function word(seed: number, stream: number, index: number): number {
  const block = Math.floor(index / 4);
  const key = [
    Number(BigInt.asUintN(32, BigInt(seed))),
    Number(BigInt.asUintN(32, BigInt(seed) >> 32n)),
  ];
  return philox([block >>> 0, Math.floor(block / 2 ** 32), stream, 0], key)[index % 4] as number;
}

const uniformOf = (seed: number, index: number): number => (word(seed, 0, index) >>> 8) / 2 ** 24;

function normalOf(seed: number, index: number): number {
  const even = index - (index % 2);
  const u = Math.fround(Math.fround(word(seed, 1, even)) + 0.5) / 2 ** 32;
  const turn = word(seed, 1, even + 1);
  const angle = (((turn & 0x7fffff) | 1) / 2 ** 22 - 1) * (Math.PI / 2);
  const [x, y] = [Math.cos(angle) * (turn >>> 31 ? -1 : 1), Math.sin(angle)];
  return Math.sqrt(-2 * Math.log(u)) * (index % 2 === 0 ? x : y);
}

describe("the generator", () => {
  // Known answers of Random123 (kat_vectors, philox4x32 10).
  it.each([
    [
      [0, 0, 0, 0],
      [0, 0],
      [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
    ],
    [
      [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
      [0xffffffff, 0xffffffff],
      [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
    ],
    [
      [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
      [0xa4093822, 0x299f31d0],
      [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
    ],
  ])(
    "is the published one: the test's own reference gives its known answers for %j",
    (counter, key, expected) => {
      expect(philox(counter, key)).toEqual(expected);
    },
  );

  it.each([
    [0, 0],
    [1, 3],
    [3407, 1022],
    [5, 2 ** 34 - 101], // blocks on both sides of 2^32
    [-1, 17],
    [Number.MAX_SAFE_INTEGER, 2 ** 34 + 1], // a counter and a key of more than 32 bits
    [Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER - 1000],
  ])("is what the kernel runs, for seed %i and offset %i", async (seed, offset) => {
    const count = 203;
    const uniform = await rand([count], { seed, offset }).toArray();
    expect([...uniform]).toEqual(
      Array.from({ length: count }, (_, i) => uniformOf(seed, offset + i)),
    );
    const normal = await randn([count], { seed, offset }).toArray();
    const expected = Array.from({ length: count }, (_, i) => normalOf(seed, offset + i));
    expect(relativeError(normal, expected)).toBeLessThan(2e-7);
  });
});

describe("random tensors", () => {
  it.each([1, 31, 33, 16383, 40_001])(
    "element i depends on seed and offset + i alone: %i elements",
    async (size) => {
      const all = await randn([size + 70_000], { seed: 5 }).toArray();
      for (const offset of [0, 1, 2, 3, 63, 64, 65_537]) {
        const part = await randn([size], { seed: 5, offset }).toArray();
        expect(
          Buffer.compare(
            Buffer.from(part.buffer),
            Buffer.from(all.slice(offset, offset + size).buffer),
          ),
        ).toBe(0);
      }
    },
  );

  it("have the moments of the normal distribution, and independent neighbours", async () => {
    const n = 1_000_000;
    const x = (await randn([n], { seed: 11 })).toArray() as Promise<Float32Array>;
    const values = await x;
    const moment = (f: (v: number, i: number) => number) =>
      values.reduce((sum, v, i) => sum + f(v, i), 0) / n;
    expect(Math.abs(moment((v) => v))).toBeLessThan(5e-3);
    expect(Math.abs(moment((v) => v * v) - 1)).toBeLessThan(1e-2);
    expect(Math.abs(moment((v) => v ** 3))).toBeLessThan(2e-2);
    expect(Math.abs(moment((v) => v ** 4) - 3)).toBeLessThan(5e-2);
    for (const lag of [1, 2, 3, 4]) {
      expect(Math.abs(moment((v, i) => v * (values[(i + lag) % n] as number)))).toBeLessThan(5e-3);
    }
    const tails = values.filter((v) => Math.abs(v) > 3).length / n; // 0.0027
    expect(tails).toBeGreaterThan(0.0024);
    expect(tails).toBeLessThan(0.003);
  });

  it("fill [0, 1) evenly", async () => {
    const values = await rand([400_000], { seed: 12 }).toArray();
    const bins = new Array<number>(20).fill(0);
    for (const v of values) {
      const bin = Math.floor(v * 20);
      bins[bin] = (bins[bin] ?? 0) + 1;
    }
    for (const count of bins) expect(Math.abs(count - 20_000)).toBeLessThan(700); // 5 standard deviations
    expect(values.every((v) => v >= 0 && v < 1)).toBe(true);
  });

  it("have the mean and deviation asked for, and round to bf16", async () => {
    const plain = await randn([50_001], { seed: 1 }).toArray();
    const shifted = await randn([50_001], { seed: 1, mean: 3, std: 0.5 }).toArray();
    expect(
      relativeError(
        shifted,
        plain.map((v) => 3 + 0.5 * v),
      ),
    ).toBeLessThan(1e-7);
    expect(new Set(await randn([9], { seed: 1, mean: 2, std: 0 }).toArray())).toEqual(new Set([2]));
    const bf16 = await randn([999], { seed: 1, dtype: "bf16" }).toArray();
    expect([...bf16]).toEqual([...plain.slice(0, 999)].map(roundToBf16));
  });

  it("never reach `high`, also when rounding would", async () => {
    for (const [low, high] of [
      [0, 1],
      [-1, 0],
      [-3, -2],
      [1, 1.0078125],
      [100, 101],
    ] as const) {
      const values = await rand([20_000], { seed: 2, low, high, dtype: "bf16" }).toArray();
      expect(values.every((v) => v >= low && v < high)).toBe(true);
    }
    const narrow = await rand([20_000], { seed: 2, low: 1, high: 1 + 2 ** -22 }).toArray();
    expect(narrow.every((v) => v >= 1 && v < 1 + 2 ** -22)).toBe(true);
  });

  it("differ between seeds and between uses of one seed", async () => {
    const [a, b] = [
      await rand([1000], { seed: 1 }).toArray(),
      await rand([1000], { seed: 2 }).toArray(),
    ];
    expect(a.filter((v, i) => v === b[i]).length).toBeLessThan(3);
    expect(randn([2], { seed: 1, requiresGrad: true }).requiresGrad).toBe(true);
  });

  it.each([
    ["no options", () => randn([2], undefined as never), "seed"],
    ["no seed", () => randn([2], {} as never), "seed"],
    ["a fractional seed", () => randn([2], { seed: 1.5 }), "an integer"],
    ["a seed beyond 53 bits", () => randn([2], { seed: 2 ** 60 }), "an integer"],
    ["a negative offset", () => rand([2], { seed: 1, offset: -1 }), "offset"],
    ["a negative std", () => randn([2], { seed: 1, std: -1 }), "std"],
    ["a mean of NaN", () => randn([2], { seed: 1, mean: Number.NaN }), "mean"],
    ["an empty range", () => rand([2], { seed: 1, low: 1, high: 1 }), "above low"],
    ["a range beyond f32", () => rand([2], { seed: 1, low: 0, high: 1e39 }), "high"],
    ["integers", () => randn([2], { seed: 1, dtype: "i32" as never }), "dtype"],
    ["a negative size", () => randn([-2], { seed: 1 }), "shape"],
    ["an unknown option", () => randn([2], { seed: 1, variance: 2 } as never), "variance"],
  ])("refuse %s and make nothing", (_, call, message) => {
    const before = memory().tensors;
    expect(call).toThrow(ArgumentError);
    expect(call).toThrow(message);
    expect(memory().tensors).toBe(before);
  });
});
