import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { mul } from "../../lib/ops/binary.js";
import { concat, type Ranges, slice, split, stack } from "../../lib/ops/slice.js";
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

const block = (x: Reference, starts: Shape, shape: Shape): Reference =>
  build(shape, (position) =>
    at(
      x,
      position.map((p, axis) => p + (starts[axis] ?? 0)),
    ),
  );

const joined = (parts: readonly Reference[], axis: number): Reference => {
  const [first] = parts as [Reference];
  const length = parts.reduce((sum, part) => sum + (part.shape[axis] as number), 0);
  const shape = first.shape.map((size, other) => (other === axis ? length : size));
  return build(shape, (position) => {
    let along = position[axis] as number;
    for (const part of parts) {
      const size = part.shape[axis] as number;
      if (along < size) return at(part, position.with(axis, along));
      along -= size;
    }
    throw new Error("outside");
  });
};

describe("slice", () => {
  it.each<[number[], Ranges, number[], number[]]>([
    [[5], { 0: [1, 4] }, [1], [3]],
    [[5], { 0: [-2] }, [3], [2]],
    [[5], { 0: [-100, 100] }, [0], [5]],
    [[5], {}, [0], [5]],
    [[4, 33], { 0: [1, 3] }, [1, 0], [2, 33]],
    [[4, 33], { [-1]: [1, -1] }, [0, 1], [4, 31]],
    [[4, 33], { 0: [3], 1: [32] }, [3, 32], [1, 1]],
    [[3, 5, 7], { 1: [2, 4], 2: [0, 3] }, [0, 2, 0], [3, 2, 3]],
    [[3, 5, 7], { 0: [0, 1], 1: [1, 5] }, [0, 1, 0], [1, 4, 7]],
  ])("takes of %j the block %j", async (shape, ranges, starts, size) => {
    await checkOperation("slice", {
      op: (x) => slice(x, ranges),
      ref: (x) => block(x, starts, size),
      inputs: [random(shape, 1)],
    });
  });

  it("takes any block of any shape, by ranges and by lists", async () => {
    const problem = shapeOf(5, 1).chain((shape) =>
      fc.record({
        shape: fc.constant(shape),
        starts: fc.tuple(...shape.map((size) => fc.nat(size - 1))),
        lengths: fc.tuple(...shape.map((size) => fc.integer({ min: 1, max: size }))),
        dtype: fc.constantFrom("f32", "bf16", "i32"),
      }),
    );
    await fc.assert(
      fc.asyncProperty(problem, async ({ shape, starts, lengths, dtype }) => {
        const x = randomIntegers(shape, 2, -100, 100);
        const ends = starts.map((start, axis) =>
          Math.min(shape[axis] as number, start + (lengths[axis] as number)),
        );
        const size = ends.map((end, axis) => end - (starts[axis] as number));
        await scope(async () => {
          const source = fromReference(x, { dtype: dtype as "f32" });
          await expectClose(slice(source, starts, ends), block(x, starts, size), 0);
          const ranges = Object.fromEntries(
            starts.map((start, axis) => [axis, [start, ends[axis]]]),
          );
          await expectClose(slice(source, ranges as unknown as Ranges), block(x, starts, size), 0);
        });
      }),
      { numRuns: 100 },
    );
  });
});

describe("concat and stack", () => {
  it.each([
    [[[3], [1], [4]], 0],
    [
      [
        [2, 3],
        [1, 3],
      ],
      0,
    ],
    [
      [
        [2, 3],
        [2, 1],
        [2, 33],
      ],
      1,
    ],
    [
      [
        [2, 3],
        [2, 1],
      ],
      -1,
    ],
    [
      [
        [2, 1, 3],
        [2, 5, 3],
      ],
      1,
    ],
    [
      [
        [1, 1, 3],
        [1, 1, 4],
      ],
      2,
    ],
    [[[2, 2]], 0],
  ])("joins %j along axis %d", async (shapes, axis) => {
    const along = axis < 0 ? axis + (shapes[0]?.length ?? 0) : axis;
    await checkOperation("concat", {
      op: (...parts) => concat(parts, axis),
      ref: (...parts) => joined(parts, along),
      inputs: shapes.map((shape, i) => random(shape, i + 3)),
    });
  });

  it.each([
    [[], 0],
    [[3], 0],
    [[3], 1],
    [[2, 3], -1],
    [[2, 3], 1],
    [[2, 3], -3],
  ])("stacks tensors of %j at axis %d", async (shape, axis) => {
    const along = axis < 0 ? axis + shape.length + 1 : axis;
    const raised = (x: Reference): Reference => ({ ...x, shape: x.shape.toSpliced(along, 0, 1) });
    await checkOperation("stack", {
      op: (...parts) => stack(parts, axis),
      ref: (...parts) => joined(parts.map(raised), along),
      inputs: [random(shape, 5), random(shape, 6), random(shape, 7)],
    });
  });

  it("joins a tensor with itself, and adds up both gradients", async () => {
    await checkOperation("concat", {
      op: (x) => concat([x, x], 1),
      ref: (x) => joined([x, x], 1),
      inputs: [random([3, 4], 8)],
    });
  });
});

describe("split", () => {
  it.each<[number[], number | number[], number, number[]]>([
    [[6], 2, 0, [2, 2, 2]],
    [[7], 3, 0, [3, 3, 1]],
    [[3], 5, 0, [3]],
    [[2, 33], [1, 31, 1], 1, [1, 31, 1]],
    [[4, 2, 3], 1, -3, [1, 1, 1, 1]],
  ])("cuts %j by %j along axis %d into %j", async (shape, sizes, axis, lengths) => {
    const along = axis < 0 ? axis + shape.length : axis;
    const x = random(shape, 9);
    await scope(async () => {
      const parts = split(fromReference(x), sizes, axis);
      expect(parts.map((part) => part.shape[along])).toEqual(lengths);
      await expectClose(concat(parts, axis), x, 0);
    });
  });

  it("gives the gradient of a part to its place, and nothing to the others", async () => {
    await checkOperation("split", {
      op: (x) => {
        const [first, , last] = split(x, 2, 1) as [Tensor, Tensor, Tensor];
        return mul(first, last);
      },
      ref: (x) =>
        build([3, 2], (position) => {
          const [row, column] = position as [number, number];
          return at(x, [row, column]) * at(x, [row, column + 4]);
        }),
      inputs: [random([3, 6], 10)],
    });
  });
});
