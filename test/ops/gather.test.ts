import fc from "fast-check";
import { expect, it } from "vitest";
import { tensor } from "../../lib/core/create.js";
import { memory, synchronize } from "../../lib/core/runtime.js";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { add } from "../../lib/ops/binary.js";
import { gather } from "../../lib/ops/gather.js";
import { shapeOf } from "../support/arbitraries.js";
import { checkOperation, fromReference } from "../support/operations.js";
import {
  at,
  build,
  expectClose,
  type Reference,
  random,
  randomIntegers,
  type Shape,
} from "../support/reference.js";

const picked = (x: Reference, index: Reference, axis: number): Reference =>
  build(index.shape, (position) => at({ ...x }, position.with(axis, at(index, position))));

it.each([
  [[5], [3], 0],
  [[5], [33], 0],
  [[4, 7], [4, 1], 1],
  [[4, 7], [4, 9], -1],
  [[4, 7], [2, 7], 0],
  [[4, 7], [9, 3], 0],
  [[3, 4, 5], [2, 6, 4], 1],
  [[3, 4, 5], [3, 4, 2], 2],
])("picks of %j by an index of %j along axis %d", async (shape, indexShape, axis) => {
  const along = axis < 0 ? axis + shape.length : axis;
  const index = randomIntegers(indexShape, 2, 0, shape[along] as number);
  await checkOperation("gather", {
    op: (x) => gather(x, fromReference(index, { dtype: "i32" }), axis),
    ref: (x) => picked(x, index, along),
    inputs: [random(shape, 1)],
  });
});

it("picks from any shape, every dtype bit for bit", async () => {
  const problem = shapeOf(4, 1).chain((shape) =>
    fc.record({
      shape: fc.constant(shape),
      axis: fc.nat(shape.length - 1),
      lengths: fc.tuple(...shape.map((size) => fc.integer({ min: 1, max: size }))),
      length: fc.integer({ min: 1, max: 20 }),
      dtype: fc.constantFrom("f32", "bf16", "i32"),
    }),
  );
  await fc.assert(
    fc.asyncProperty(problem, async ({ shape, axis, lengths, length, dtype }) => {
      const x = randomIntegers(shape, 3, -100, 100);
      const indexShape: Shape = (lengths as number[]).with(axis, length);
      const index = randomIntegers(indexShape, 4, 0, shape[axis] as number);
      await scope(async () => {
        const source = fromReference(x, { dtype: dtype as "f32" });
        const y = gather(source, fromReference(index, { dtype: "i32" }), axis);
        await expectClose(y, picked(x, index, axis), 0);
      });
    }),
    { numRuns: 80 },
  );
});

it("picks from a tensor without axes", async () => {
  await scope(async () => {
    const x = tensor(3, { requiresGrad: true });
    const y = gather(x, tensor(0, { dtype: "i32" }), 0);
    expect(y.shape).toEqual([]);
    expect(await y.item()).toBe(3);
    y.backward();
    expect(await x.grad?.item()).toBe(1);
  });
});

it("adds the gradients of an element that is picked often in f32, also for bf16", async () => {
  const index = new Int32Array(3000).fill(1);
  await scope(async () => {
    const x = tensor([1, 2], { dtype: "bf16", requiresGrad: true });
    const y = gather(x, tensor(index), 0);
    y.backward({ gradient: tensor(new Float32Array(3000).fill(1), { dtype: "bf16" }) });
    // Adding one by one in bf16 would stop at 256.
    expect([...((await x.grad?.toArray()) ?? [])]).toEqual([0, 3008]); // 3000 as bf16
  });
});

it.each([[-1], [5], [2 ** 31 - 1], [-(2 ** 31)]])(
  "refuses the index %d at the next wait, and works after that",
  async (bad) => {
    await scope(async () => {
      const x = tensor([1, 2, 3, 4, 5]);
      await synchronize();
      const y = gather(x, tensor([0, bad, 1], { dtype: "i32" }), 0);
      const unused: Tensor = add(y, 1);
      await expect(unused.toArray()).rejects.toThrow(
        new RegExp(`^\\[gather\\].*index ${bad} at element 1 is outside axis 0 of size 5`),
      );
      const again = gather(x, tensor([4], { dtype: "i32" }), 0);
      expect(await again.item()).toBe(5);
    });
    expect(memory().tensors).toBe(0);
  },
);
