import { describe, expect, it } from "vitest";
import { tensor, zeros } from "../../lib/core/create.js";
import { DTypeError, NativeError, ShapeError } from "../../lib/core/errors.js";
import { synchronize } from "../../lib/core/runtime.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { cast } from "../../lib/ops/cast.js";
import { composedEmbedding, embedding } from "../../lib/ops/embedding.js";
import { expectComposed } from "../support/composed.js";
import { toTensor } from "../support/float-ops.js";
import {
  at,
  build,
  expectClose,
  type Reference,
  random,
  randomIntegers,
  tolerances,
} from "../support/reference.js";

const rows = (ids: Reference, weight: Reference): Reference =>
  build([...ids.shape, weight.shape[1] as number], (position) =>
    at(weight, [at(ids, position.slice(0, -1)), position.at(-1) as number]),
  );

/** Each row of the table sums the gradients of the places to which it was copied. */
function scattered(ids: Reference, dy: Reference, vocab: number): Reference {
  const hidden = dy.shape.at(-1) as number;
  const data = new Float64Array(vocab * hidden);
  dy.data.forEach((value, index) => {
    const row = ids.data[Math.floor(index / hidden)] as number;
    const place = row * hidden + (index % hidden);
    data[place] = (data[place] ?? 0) + value;
  });
  return { shape: [vocab, hidden], data };
}

const idTensor = (ids: Reference): Tensor =>
  tensor(Int32Array.from(ids.data), { shape: ids.shape });

describe.each(["f32", "bf16"] as const)("embedding in %s", (dtype) => {
  it.each([
    [[], 1, 1],
    [[1], 3, 31],
    [[2, 3], 5, 33],
    [[4, 31], 7, 64],
    [[3, 2, 11], 100, 65],
    [[600], 50, 257],
  ])(
    "copies rows and adds gradients of repeated ids: ids %j, table (%i, %i)",
    async (shape, vocab, hidden) => {
      const ids = randomIntegers(shape, 1, 0, vocab);
      const weight = random([vocab, hidden], 2, { dtype });
      const leaf = toTensor(weight, dtype, true);
      const y = embedding(idTensor(ids), leaf);
      await expectClose(y, rows(ids, weight), 0, "rows are copies");
      const dy = random(y.shape, 3, { dtype });
      y.backward({ gradient: toTensor(dy, dtype) });
      const expected = scattered(ids, dy, vocab);
      await expectClose(leaf.grad as Tensor, expected, 1e-5);

      embedding(idTensor(ids), leaf).backward({ gradient: toTensor(dy, dtype) });
      await expectClose(
        leaf.grad as Tensor,
        { ...expected, data: expected.data.map((v) => 2 * v) },
        1e-5,
        "added",
      );
    },
  );

  it("hands a table that was computed its gradient in the table's dtype", async () => {
    const ids = randomIntegers([9], 1, 0, 4);
    const weight = random([4, 5], 2, { dtype });
    const leaf = toTensor(weight, "f32", true);
    const y = embedding(idTensor(ids), cast(leaf, dtype));
    const dy = random([9, 5], 3, { dtype });
    y.backward({ gradient: toTensor(dy, dtype) });
    await expectClose(leaf.grad as Tensor, scattered(ids, dy, 4), tolerances[dtype].gradient);
  });
});

it.each([
  [[], 1, 1],
  [[2, 3], 5, 33],
  [[600], 50, 65],
])(
  "equals its composed form in value and gradient: ids %j, table (%i, %i)",
  async (shape, vocab, hidden) => {
    const ids = idTensor(randomIntegers(shape, 4, 0, vocab));
    const of = (op: typeof embedding) => (weight: Tensor) => op(ids, weight);
    await expectComposed(of(embedding), of(composedEmbedding), [random([vocab, hidden], 5)]);
  },
);

describe("bad input to embedding", () => {
  it.each([
    [[0, 1, 4, 2], 4, 2],
    [[3, -1], -1, 1],
    [[2147483647], 2147483647, 0],
  ])("names id and position when an id is outside: %j", async (ids, id, position) => {
    const y = embedding(tensor(Int32Array.from(ids)), zeros([4, 8]));
    const failure = await y.toArray().catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(NativeError);
    expect(failure).toMatchObject({ code: "ERR_TOKEN_ID" });
    expect((failure as Error).message).toContain(
      `token id ${id} at position ${position} is outside the vocabulary 0..3`,
    );
    // The device continues with the next operation.
    expect([...(await embedding(tensor(Int32Array.of(1)), zeros([4, 2])).toArray())]).toEqual([
      0, 0,
    ]);
    await synchronize();
  });

  it.each([
    ["ids of floats", () => embedding(zeros([2]), zeros([4, 8])), DTypeError, "i32"],
    [
      "a table of integers",
      () => embedding(zeros([2], { dtype: "i32" }), zeros([4, 8], { dtype: "i32" })),
      DTypeError,
      "weight",
    ],
    [
      "a table with one axis",
      () => embedding(zeros([2], { dtype: "i32" }), zeros([4])),
      ShapeError,
      "expected 2 axes for weight",
    ],
    [
      "ids with eight axes",
      () => embedding(zeros([1, 1, 1, 1, 1, 1, 1, 1], { dtype: "i32" }), zeros([4, 8])),
      ShapeError,
      "ids",
    ],
  ])("refuses %s", (_, call, type, message) => {
    expect(call).toThrow(type);
    expect(call).toThrow(message);
  });
});
