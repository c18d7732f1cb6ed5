import { describe, expect, it } from "vitest";
import { tensor, zeros } from "../../lib/core/create.js";
import { ArgumentError, DTypeError, ShapeError } from "../../lib/core/errors.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { composedRope, type RopeOptions, rope, ropeTable } from "../../lib/ops/rope.js";
import { expectComposed } from "../support/composed.js";
import { expectOpMatches, toTensor } from "../support/float-ops.js";
import { build, expectClose, type Reference, random, reference } from "../support/reference.js";

const theta = 500;

function composed(
  x: Reference,
  { heads, rotatedHeads = heads, position = 0 }: RopeOptions,
): Reference {
  const [, time, width] = x.shape as [number, number, number];
  const size = width / heads;
  return reference(x.shape, (index) => {
    const head = Math.floor((index % width) / size);
    if (head >= rotatedHeads) return x.data[index]!;
    const i = index % size;
    const t = position + (Math.floor(index / width) % time);
    const angle = t * theta ** ((-2 * (i % (size / 2))) / size);
    const other = i < size / 2 ? -x.data[index + size / 2]! : x.data[index - size / 2]!;
    return x.data[index]! * Math.cos(angle) + other * Math.sin(angle);
  });
}

const table = (size: number) => ropeTable(64, size, theta);

describe.each(["f32", "bf16"] as const)("rope in %s", (dtype) => {
  it.each([
    [2, 1, { heads: 1 }],
    [6, 3, { heads: 3, rotatedHeads: 2, position: 5 }],
    [16, 4, { heads: 2, rotatedHeads: 0 }],
    [34, 2, { heads: 2, rotatedHeads: 1, position: 62 }],
    [64, 3, { heads: 3, rotatedHeads: 2 }],
  ] as const)(
    "turns pairs of head size %i over %i tokens with %j, with gradient",
    async (size, time, options) => {
      const x = random([2, time, options.heads * size], 1);
      await expectOpMatches(
        (x) => rope(x, table(size), options),
        (x) => composed(x, options),
        [x],
        dtype,
      );
    },
  );

  it("turns each token by its own position, in any order, with gradient", async () => {
    const [heads, size, time] = [3, 16, 5];
    const positions = [63, 0, 7, 7, 12, 1, 1, 30, 2, 0];
    const x = random([2, time, heads * size], 6);
    const own = tensor(Int32Array.from(positions), { shape: [2, time] });
    const options = { heads, rotatedHeads: 2, positions: own };
    await expectOpMatches(
      (x) => rope(x, table(size), options),
      (x) => {
        const parts = positions.map((position, token) =>
          composed(
            reference([1, 1, heads * size], (i) => x.data[token * heads * size + i]!),
            { heads, rotatedHeads: 2, position },
          ),
        );
        return reference(
          x.shape,
          (i) => parts[Math.floor(i / (heads * size))]!.data[i % (heads * size)]!,
        );
      },
      [x],
      dtype,
    );
  });

  it("has the bits of a position where positions count from it", async () => {
    const x = random([2, 5, 3 * 16], 7, { dtype });
    const run = async (options: Partial<RopeOptions>) => {
      const leaf = toTensor(x, dtype, true);
      const y = rope(leaf, table(16), { heads: 3, rotatedHeads: 2, ...options });
      y.backward({ gradient: toTensor(random(y.shape, 8, { dtype }), dtype) });
      return [await y.toArray(), await (leaf.grad as Tensor).toArray()];
    };
    const positions = tensor(
      Int32Array.from([...Array(10).keys()], (i) => 9 + (i % 5)),
      { shape: [2, 5] },
    );
    expect(await run({ positions })).toEqual(await run({ position: 9 }));
  });

  it("gives the same in place, also for the gradient", async () => {
    const options = { heads: 3, rotatedHeads: 2, position: 1 };
    const x = random([2, 5, 3 * 16], 2, { dtype });
    const run = async (inPlace: boolean) => {
      const leaf = toTensor(x, dtype, true);
      const own = rope(leaf, table(16), { heads: 3, rotatedHeads: 0 }); // not the leaf
      const y = rope(own, table(16), { ...options, inPlace });
      y.backward({ gradient: toTensor(random(y.shape, 3, { dtype }), dtype) });
      return [await y.toArray(), await (leaf.grad as Tensor).toArray(), await own.toArray()];
    };
    const [apart, over] = [await run(false), await run(true)];
    expect(over[0]).toEqual(apart[0]);
    expect(over[1]).toEqual(apart[1]);
    expect(over[2]).toEqual(over[0]); // the rotation was in place
    expect(apart[2]).not.toEqual(apart[0]);
  });
});

it("makes its table in double, exact at distant positions", async () => {
  const positions = 70_000;
  const values = await ropeTable(positions, 8, 10000).toArray();
  for (const [position, i] of [
    [0, 0],
    [1, 3],
    [69_999, 0],
    [69_999, 1],
    [12_345, 2],
  ] as const) {
    const angle = position * 10000 ** (-i / 4);
    expect(values[(position * 4 + i) * 2]).toBeCloseTo(Math.cos(angle), 6);
    expect(values[(position * 4 + i) * 2 + 1]).toBeCloseTo(Math.sin(angle), 6);
  }
});

it("keeps the length of every pair and depends on relative positions alone", async () => {
  const [q, k] = [random([1, 1, 16], 4), random([1, 1, 16], 5)];
  const score = async (tq: number, tk: number) => {
    const turned = await rope(toTensor(q), table(16), { heads: 1, position: tq }).toArray();
    const other = await rope(toTensor(k), table(16), { heads: 1, position: tk }).toArray();
    return [...turned].reduce((sum, v, i) => sum + v * other[i]!, 0);
  };
  expect(await score(20, 13)).toBeCloseTo(await score(7, 0), 5);
  const same = build([1, 1, 16], () => 1);
  const y = await rope(toTensor(same), table(16), { heads: 1, position: 63 }).toArray();
  await expectClose(
    toTensor(reference([8], (i) => y[i]! ** 2 + y[i + 8]! ** 2)),
    reference([8], () => 2),
  );
});

it.each([-1, 8, 2 ** 31 - 1])(
  "names the token whose position %i is no row of the table",
  async (bad) => {
    const positions = tensor(Int32Array.from([0, 7, 0, bad, 1, 2]), { shape: [2, 3] });
    const run = () => rope(zeros([2, 3, 24]), ropeTable(8, 8), { heads: 3, positions });
    await expect(run().toArray()).rejects.toMatchObject({
      code: "ERR_POSITION",
      message: expect.stringContaining(`position ${bad} of token 3`),
    });
    // A table shorter than the window is no error.
    const good = tensor(
      Int32Array.from({ length: 20 }, (_, t) => t % 8),
      { shape: [1, 20] },
    );
    const y = rope(zeros([1, 20, 24]), ropeTable(8, 8), { heads: 3, positions: good });
    expect([...(await y.toArray())].every((v) => v === 0)).toBe(true);
  },
);

it.each<[number, number, RopeOptions]>([
  [2, 1, { heads: 1 }],
  [6, 3, { heads: 3, rotatedHeads: 2, position: 5 }],
  [16, 4, { heads: 2, rotatedHeads: 0 }],
  [64, 9, { heads: 3, rotatedHeads: 2 }],
])(
  "equals its composed form in value and gradient: head size %i, %i tokens, %j",
  async (size, time, options) => {
    const x = random([2, time, options.heads * size], 6);
    const run = (op: typeof rope, more: object) => (x: Tensor) =>
      op(x, table(size), { ...options, ...more });
    await expectComposed(run(rope, {}), run(composedRope, {}), [x]);
    // A first document of one token, and another behind it.
    const places = [0, 1].map((row) =>
      Array.from({ length: time }, (_, t) => t - Math.min(t, row)),
    );
    const more = { position: 0, positions: tensor(places, { dtype: "i32" }) };
    await expectComposed(run(rope, more), run(composedRope, more), [x]);
  },
);

describe("bad input to rope", () => {
  const x = () => zeros([2, 4, 3 * 8]);
  const good = { heads: 3 };
  it.each<[string, () => unknown, new (...a: never[]) => Error, string]>([
    ["an odd head size", () => ropeTable(4, 7), ArgumentError, "an even number for headSize"],
    ["no positions", () => ropeTable(0, 8), ArgumentError, "positions"],
    ["a theta of 0", () => ropeTable(4, 8, 0), ArgumentError, "theta"],
    ["two axes", () => rope(zeros([4, 24]), table(8), good), ShapeError, "expected 3 axes"],
    [
      "heads that do not fit",
      () => rope(x(), table(8), { heads: 5 }),
      ShapeError,
      "5 heads of an even size",
    ],
    [
      "a table of another head size",
      () => rope(x(), table(16), good),
      ShapeError,
      "half of head size 8",
    ],
    [
      "a table that is too short",
      () => rope(x(), table(8), { ...good, position: 61 }),
      ShapeError,
      "at least 65 positions (61 + 4 tokens)",
    ],
    [
      "more rotated heads than heads",
      () => rope(x(), table(8), { ...good, rotatedHeads: 4 }),
      ArgumentError,
      "rotatedHeads",
    ],
    [
      "a negative position",
      () => rope(x(), table(8), { ...good, position: -1 }),
      ArgumentError,
      "position",
    ],
    [
      "positions beside a position",
      () =>
        rope(x(), table(8), { ...good, position: 1, positions: zeros([2, 4], { dtype: "i32" }) }),
      ArgumentError,
      "position 0 beside positions",
    ],
    [
      "positions of another shape",
      () => rope(x(), table(8), { ...good, positions: zeros([4], { dtype: "i32" }) }),
      ShapeError,
      "[2,4] for positions",
    ],
    [
      "positions of floats",
      () => rope(x(), table(8), { ...good, positions: zeros([2, 4]) }),
      DTypeError,
      "positions",
    ],
    [
      "an unknown option",
      () => rope(x(), table(8), { ...good, inplace: true } as never),
      ArgumentError,
      "inplace",
    ],
    ["no options", () => rope(x(), table(8), undefined as never), ArgumentError, "heads"],
    [
      "a table of bf16",
      () => rope(x(), zeros([64, 4, 2], { dtype: "bf16" }), good),
      DTypeError,
      "table",
    ],
    [
      "integers",
      () => rope(zeros([2, 4, 24], { dtype: "i32" }), table(8), good),
      DTypeError,
      "f32 or bf16",
    ],
    [
      "changing a leaf in place",
      () => rope(zeros([2, 4, 24], { requiresGrad: true }), table(8), { ...good, inPlace: true }),
      ArgumentError,
      "in place",
    ],
  ])("refuses %s", (_, call, type, message) => {
    expect(call).toThrow(type);
    expect(call).toThrow(message);
  });
});
