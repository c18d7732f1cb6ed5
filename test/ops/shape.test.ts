import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { tensor } from "../../lib/core/create.js";
import { memory, synchronize } from "../../lib/core/runtime.js";
import { scope } from "../../lib/core/scope.js";
import { mul } from "../../lib/ops/binary.js";
import { permute, reshape, squeeze, transpose, unsqueeze } from "../../lib/ops/shape.js";
import { shapeOf } from "../support/arbitraries.js";
import { checkOperation, fromReference } from "../support/operations.js";
import * as reference from "../support/reference.js";
import { expectClose, random, randomIntegers } from "../support/reference.js";

describe("reshape", () => {
  it.each([
    [
      [2, 6],
      [3, 4],
      [3, 4],
    ],
    [[2, 6], [-1], [12]],
    [
      [2, 6],
      [4, -1],
      [4, 3],
    ],
    [[6], [1, 2, 3, -1, 1], [1, 2, 3, 1, 1]],
    [[], [1, 1], [1, 1]],
    [[1, 1], [], []],
    [[33], [-1, 1], [33, 1]],
  ])("gives %j the shape %j", async (from, to, expected) => {
    await checkOperation("reshape", {
      op: (x) => reshape(x, to),
      ref: (x) => reference.reshape(x, expected),
      inputs: [random(from, 1)],
    });
  });

  it("shares memory with its input and outlives it", async () => {
    await scope(async () => {
      const x = tensor(new Float32Array(1024).fill(2));
      await synchronize();
      const before = memory().bytes;
      const y = reshape(x, [32, 32]);
      await synchronize();
      expect(memory().bytes).toBe(before);
      x.dispose();
      expect((await y.toArray())[1023]).toBe(2);
    });
  });
});

describe("squeeze and unsqueeze", () => {
  it.each<[number[], number | number[] | undefined, number[]]>([
    [[1, 3, 1, 2], undefined, [3, 2]],
    [[1, 3, 1, 2], 0, [3, 1, 2]],
    [
      [1, 3, 1, 2],
      [0, -2],
      [3, 2],
    ],
    [[1, 3], 1, [1, 3]],
    [[1], undefined, []],
    [[], undefined, []],
    [[], -1, []],
  ])("squeezes %j at %j to %j", async (from, axes, to) => {
    await checkOperation("squeeze", {
      op: (x) => squeeze(x, axes),
      ref: (x) => reference.reshape(x, to),
      inputs: [random(from, 2)],
    });
  });

  it.each([
    [[2, 3], 0, [1, 2, 3]],
    [[2, 3], 2, [2, 3, 1]],
    [[2, 3], -1, [2, 3, 1]],
    [[2, 3], -3, [1, 2, 3]],
    [[], 0, [1]],
  ])("unsqueezes %j at %d to %j", async (from, axis, to) => {
    await checkOperation("unsqueeze", {
      op: (x) => unsqueeze(x, axis),
      ref: (x) => reference.reshape(x, to),
      inputs: [random(from, 3)],
    });
  });
});

describe("permute and transpose", () => {
  it.each([
    [[], []],
    [[5], [0]],
    [
      [3, 5],
      [1, 0],
    ],
    [
      [31, 33],
      [1, 0],
    ],
    [
      [32, 64],
      [-1, -2],
    ],
    [
      [65, 129],
      [1, 0],
    ],
    [
      [3, 5, 7],
      [2, 0, 1],
    ],
    [
      [2, 3, 4, 5],
      [0, 2, 1, 3],
    ],
    [
      [2, 3, 1, 5],
      [2, 0, 1, 3],
    ],
    [
      [2, 3, 2, 2, 3, 2, 1, 2],
      [7, 0, 6, 1, 5, 2, 4, 3],
    ],
  ])("permutes %j by %j", async (shape, order) => {
    const axes = order.map((axis) => (axis < 0 ? axis + shape.length : axis));
    await checkOperation("permute", {
      op: (x) => permute(x, order),
      ref: (x) => reference.permute(x, axes),
      inputs: [random(shape, 4)],
      gradient: shape.reduce((product, n) => product * n, 1) < 1200,
    });
  });

  it("permutes any shape in any order, every dtype bit for bit, and back", async () => {
    const problem = shapeOf(6).chain((shape) =>
      fc.record({
        shape: fc.constant(shape),
        order: fc.shuffledSubarray(
          shape.map((_, axis) => axis),
          { minLength: shape.length },
        ),
        dtype: fc.constantFrom("f32", "bf16", "i32"),
      }),
    );
    await fc.assert(
      fc.asyncProperty(problem, async ({ shape, order, dtype }) => {
        const x = randomIntegers(shape, 5, -128, 128);
        await scope(async () => {
          const y = permute(fromReference(x, { dtype: dtype as "f32" }), order);
          await expectClose(y, reference.permute(x, order), 0);
          const back = order.map((_, axis) => order.indexOf(axis));
          await expectClose(permute(y, back), x, 0);
        });
      }),
      { numRuns: 100 },
    );
  });

  it("transposes the last two axes, or the two that are named", async () => {
    const inputs = [random([2, 3, 5], 6)];
    await checkOperation("transpose", {
      op: (x) => transpose(x),
      ref: (x) => reference.permute(x, [0, 2, 1]),
      inputs,
    });
    await checkOperation("transpose", {
      op: (x) => transpose(x, 0, -1),
      ref: (x) => reference.permute(x, [2, 1, 0]),
      inputs,
    });
    await checkOperation("transpose", {
      op: (x) => transpose(x, 1, 1),
      ref: (x) => x,
      inputs,
    });
  });
});

it("carries gradients through views of views", async () => {
  await checkOperation("views", {
    op: (x) => mul(squeeze(unsqueeze(reshape(transpose(x, 0, 1), [3, 4]), 1)), reshape(x, [3, 4])),
    ref: (x) =>
      reference.zip(
        reference.reshape(reference.permute(x, [1, 0]), [3, 4]),
        reference.reshape(x, [3, 4]),
        (a, b) => a * b,
      ),
    inputs: [random([2, 6], 7)],
  });
});
