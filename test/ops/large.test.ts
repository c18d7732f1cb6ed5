import { freemem } from "node:os";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ones, tensor } from "../../lib/core/create.js";
import { native } from "../../lib/core/native.js";
import { empty, type Tensor } from "../../lib/core/tensor.js";
import { embedding } from "../../lib/ops/embedding.js";
import { rmsNorm } from "../../lib/ops/rms-norm.js";
import { argmax } from "../../lib/ops/sample.js";
import { swiglu } from "../../lib/ops/swiglu.js";

// docs/faults.md, row N6: more than 2^31 elements in one tensor, where a 32-bit index would wrap.
const [rows, columns] = [65_537, 32_770];
const values = async (x: Tensor): Promise<Set<number>> => new Set(await x.toArray());

describe("a table of more than 2^31 elements, of which a few rows are ever touched", () => {
  it("is read and added to at the right places by embedding", async () => {
    const table = empty([rows, columns], { dtype: "bf16" });
    for (const [row, value] of [
      [0, 1],
      [rows - 1, 3],
    ] as const) {
      native.fill(table.view([1, columns], row * columns).native, value);
    }
    const y = await embedding(tensor(Int32Array.of(rows - 1, 0)), table).toArray();
    expect(new Set(y.slice(0, columns))).toEqual(new Set([3]));
    expect(new Set(y.slice(columns))).toEqual(new Set([1]));
    table.dispose();

    const gradient = empty([rows, columns]);
    const last = gradient.view([1, columns], (rows - 1) * columns);
    native.fill(last.native, 1);
    const ids = tensor(Int32Array.of(rows - 1, rows - 1));
    const dy = ones([2, columns]);
    native.embeddingBackward(ids.native, dy.native, gradient.native);
    expect(await values(last)).toEqual(new Set([3]));
    last.dispose();
    gradient.dispose();
  });
});

// The test touches 4.3 GB, which takes half a minute on a system that hands out memory slowly.
describe.runIf(process.env.LLAMAFORGE_TEST_LARGE === "1" && freemem() > 6e9)(
  "a tensor of more than 2^31 elements, all of them",
  () => {
    let table: Tensor;
    let last: Tensor;
    beforeAll(() => {
      table = empty([rows, columns], { dtype: "bf16" });
      native.fill(table.native, 1);
      last = table.view([1, columns], (rows - 1) * columns);
    });
    afterAll(() => {
      last.dispose();
      table.dispose();
    });

    it("is filled to its last element", async () => {
      const sum = empty([1]);
      native.sumOfSquares(table.native, sum.native);
      expect(await sum.item()).toBe(Math.fround(rows * columns));
      expect(await values(last)).toEqual(new Set([1]));
    });

    it("is worked on in place, row by row, to the end", async () => {
      native.fill(last.native, 3);
      const scales = empty([rows]);
      const weight = ones([columns], { dtype: "bf16" });
      native.rmsNormForward(table.native, weight.native, table.native, scales.native, 0);
      expect(await values(last)).toEqual(new Set([1]));
      expect((await scales.toArray())[rows - 1]).toBeCloseTo(1 / 3, 6);
    });

    it("is refused where an index could not be told: argmax over 2^31 elements", async () => {
      const flat = table.view([table.size]);
      await expect(argmax(flat).toArray()).rejects.toThrow("longer than an i32 index can say");
      flat.dispose();
    });
  },
);

it("works on the smallest tensors there are", async () => {
  expect(await rmsNorm(tensor([-3]), ones([1]), 0).item()).toBe(-1);
  expect(await swiglu(tensor([0, 5])).item()).toBe(0);
  expect(await embedding(tensor(Int32Array.of(0)), tensor([[7]])).item()).toBe(7);
  expect(await argmax(tensor([7])).item()).toBe(0);
});
