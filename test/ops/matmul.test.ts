import { describe, expect, it } from "vitest";
import { zeros } from "../../lib/core/create.js";
import { ArgumentError, DTypeError, ShapeError } from "../../lib/core/errors.js";
import { matmul } from "../../lib/ops/matmul.js";
import { expectOpMatches, toTensor } from "../support/float-ops.js";
import {
  matmul as composed,
  expectClose,
  type Reference,
  random,
  reshape,
} from "../support/reference.js";

describe.each(["f32", "bf16"] as const)("matmul in %s", (dtype) => {
  it.each([
    [
      [1, 1],
      [1, 1],
    ],
    [
      [2, 3],
      [3, 4],
    ],
    [
      [31, 5],
      [5, 17],
    ],
    [
      [2, 3, 4],
      [4, 5],
    ],
    [
      [3, 4],
      [2, 4, 5],
    ],
    [
      [2, 3, 4],
      [2, 4, 5],
    ],
    [
      [2, 1, 3, 4],
      [5, 4, 2],
    ],
    [
      [1, 3, 4],
      [2, 4, 3],
    ],
    [
      [2, 3, 4],
      [1, 4, 3],
    ],
    [
      [1, 3, 4],
      [1, 4, 3],
    ],
    [
      [1, 1, 3, 4],
      [4, 3],
    ],
    [
      [3, 1, 2, 2, 4],
      [2, 1, 4, 3],
    ],
  ])("multiplies %j by %j, with gradients", async (shapeA, shapeB) => {
    await expectOpMatches(matmul, composed, [random(shapeA, 1), random(shapeB, 2)], dtype);
  });

  it("takes a vector on the left as a row and on the right as a column", async () => {
    const row = (a: Reference) => reshape(a, [1, a.data.length]);
    const column = (b: Reference) => reshape(b, [b.data.length, 1]);
    const [vector, matrix, batch] = [random([4], 1), random([4, 3], 2), random([2, 5, 4], 3)];
    await expectOpMatches(
      matmul,
      (a, b) => reshape(composed(row(a), b), [3]),
      [vector, matrix],
      dtype,
    );
    await expectOpMatches(
      matmul,
      (a, b) => reshape(composed(a, column(b)), [2, 5]),
      [batch, vector],
      dtype,
    );
    await expectOpMatches(
      matmul,
      (a, b) => reshape(composed(row(a), column(b)), []),
      [vector, random([4], 4)],
      dtype,
    );
  });

  it("is right for sizes of several tiles", async () => {
    const [a, b] = [random([3, 130, 65], 1, { dtype }), random([3, 65, 129], 2, { dtype })];
    await expectClose(matmul(toTensor(a, dtype), toTensor(b, dtype)), composed(a, b));
  });
});

describe("bad input to matmul", () => {
  it.each<[string, () => unknown, new (...a: never[]) => Error, string]>([
    [
      "inner sizes that differ",
      () => matmul(zeros([2, 3]), zeros([4, 5])),
      ShapeError,
      "inner sizes 3 and 4 differ",
    ],
    [
      "vectors of other lengths",
      () => matmul(zeros([3]), zeros([4])),
      ShapeError,
      "inner sizes 3 and 4 differ",
    ],
    [
      "batch axes that do not broadcast",
      () => matmul(zeros([2, 3, 4]), zeros([5, 4, 2])),
      ShapeError,
      "do not broadcast",
    ],
    ["a scalar", () => matmul(zeros([]), zeros([1, 1])), ShapeError, "at least 1 axis"],
    [
      "two dtypes",
      () => matmul(zeros([2, 2]), zeros([2, 2], { dtype: "bf16" })),
      DTypeError,
      "one dtype",
    ],
    [
      "integers",
      () => matmul(zeros([2, 2], { dtype: "i32" }), zeros([2, 2])),
      DTypeError,
      "f32 or bf16",
    ],
    ["a number", () => matmul(zeros([2, 2]), 3 as never), ArgumentError, "expected a tensor for b"],
  ])("refuses %s", (_, call, type, message) => {
    expect(call).toThrow(type);
    expect(call).toThrow(message);
  });
});
