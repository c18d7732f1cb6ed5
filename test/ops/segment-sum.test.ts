import { expect, it } from "vitest";
import { tensor, zeros } from "../../lib/core/create.js";
import { ArgumentError, DTypeError, ShapeError } from "../../lib/core/errors.js";
import { synchronize } from "../../lib/core/runtime.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { composedSegmentSum, segmentSum } from "../../lib/ops/segment-sum.js";
import { expectComposed } from "../support/composed.js";
import { toTensor } from "../support/float-ops.js";
import { expectClose, random, reference, tolerances } from "../support/reference.js";

it.each([
  [1, 1],
  [7, 3],
  [1000, 5],
  [4096, 300],
])("sums %i elements into %i segments, and its gradient goes back to each", async (size, count) => {
  const x = random([size], 1);
  const of = Int32Array.from(
    { length: size },
    (_, i) => (i * 7 + (i % 3)) % Math.max(1, count - 1),
  );
  const expected = reference([count], () => 0);
  for (const [i, segment] of of.entries()) expected.data[segment]! += x.data[i]!;
  const leaf = toTensor(x, "f32", true);
  const y = segmentSum(leaf, tensor(of), count);
  await expectClose(y, expected, tolerances.f32.forward);
  const dy = random([count], 2);
  y.backward({ gradient: toTensor(dy) });
  const gradient = [...(await (leaf.grad as Tensor).toArray())];
  expect(gradient).toEqual([...of].map((segment) => Math.fround(dy.data[segment]!)));
  await expectComposed(
    (x) => segmentSum(x, tensor(of), count),
    (x) => composedSegmentSum(x, tensor(of), count),
    [x],
  );
});

it("names what is wrong with its arguments", async () => {
  const ids = tensor([0, 1], { dtype: "i32" });
  expect(() => segmentSum(zeros([2], { dtype: "bf16" }), ids, 2)).toThrow(DTypeError);
  expect(() => segmentSum(zeros([3]), ids, 2)).toThrow(ShapeError);
  expect(() => segmentSum(zeros([1, 2]), ids, 2)).toThrow(ShapeError);
  expect(() => segmentSum(zeros([2]), ids, 0)).toThrow(ArgumentError);
  segmentSum(zeros([2]), tensor([0, 2], { dtype: "i32" }), 2);
  await expect(synchronize()).rejects.toThrow(/index/);
});
