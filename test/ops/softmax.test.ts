import { describe, expect, it } from "vitest";
import { tensor } from "../../lib/core/create.js";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { mul } from "../../lib/ops/binary.js";
import { sum } from "../../lib/ops/reduce.js";
import { composedLogSoftmax, composedSoftmax, logSoftmax, softmax } from "../../lib/ops/softmax.js";
import { expectComposed } from "../support/composed.js";
import { checkOperation } from "../support/operations.js";
import * as reference from "../support/reference.js";
import { map, type Reference, random, reduce, total, zip } from "../support/reference.js";

const logSoftmaxReference = (x: Reference, axis = -1): Reference => {
  const highest = reduce(x, (values) => Math.max(...values), [axis], true);
  const shifted = zip(x, highest, (a, b) => a - b);
  const sums = reduce(map(shifted, Math.exp), total, [axis], true);
  return zip(shifted, sums, (value, s) => value - Math.log(s));
};

describe.each([
  ["softmax", softmax, reference.softmax],
  ["logSoftmax", logSoftmax, logSoftmaxReference],
] as const)("%s", (name, op, ref) => {
  it.each([
    [[1], -1],
    [[31], -1],
    [[33], 0],
    [[3, 16], -1],
    [[3, 17], 0],
    [[2, 3, 5], 1],
    [[2, 3, 5], -3],
    [[4, 1], -1],
    [[2, 131], 1],
  ])("of %j over axis %d", async (shape, axis) => {
    await checkOperation(name, {
      op: (x) => op(x, axis),
      ref: (x) => ref(x, axis),
      inputs: [random(shape, 1, { low: -4, high: 4 })],
      eps: 1e-5,
    });
  });

  it("of a long row, whose sum covers many blocks", async () => {
    await checkOperation(name, {
      op: (x) => op(x),
      ref: (x) => ref(x),
      inputs: [random([2, 50257], 2, { low: -8, high: 8 })],
      gradient: false,
    });
  });

  it("of a tensor without axes is that of one element", async () => {
    await scope(async () => {
      const x = tensor(7, { requiresGrad: true });
      const y = op(x);
      expect(y.shape).toEqual([]);
      expect(await y.item()).toBe(name === "softmax" ? 1 : 0);
      y.backward();
      expect(((await x.grad?.item()) ?? 1) + 0).toBe(0);
    });
  });

  it("does not overflow, and lets NaN and what has no answer be NaN", async () => {
    const { NaN: nan, POSITIVE_INFINITY: inf } = Number;
    await scope(async () => {
      const rows = [
        [1e30, 1e30, -1e30],
        [-1e30, -1e30, -inf],
        [0, nan, 0],
        [inf, 0, 0],
        [-inf, -inf, -inf],
      ];
      const y = [...(await op(tensor(rows)).toArray())];
      const half = name === "softmax" ? 0.5 : Math.fround(Math.log(0.5));
      const none = name === "softmax" ? 0 : -inf;
      expect(y.slice(0, 2)).toEqual([half, half]);
      expect(y[2]).toBe(name === "softmax" ? 0 : Math.fround(-2e30));
      expect(y.slice(3, 6)).toEqual([half, half, none]);
      expect(y.slice(6)).toEqual(new Array(9).fill(nan));
    });
  });
});

it("gives cross-entropy and its gradient when composed", async () => {
  const x = random([5, 11], 3, { low: -2, high: 2 });
  const weights = random([5, 11], 4, { low: 0, high: 1 });
  await checkOperation("cross-entropy", {
    op: (x, w) => sum(mul(logSoftmax(x), w)),
    ref: (x, w) =>
      reduce(
        zip(logSoftmaxReference(x), w, (a, b) => a * b),
        total,
      ),
    inputs: [x, weights],
  });
});

it.each([
  [[1], -1],
  [[3, 17], 0],
  [[2, 3, 5], 1],
  [[2, 131], -1],
])("equal their composed forms in value and gradient, for %j over axis %i", async (shape, axis) => {
  const x = random(shape, 5, { low: -4, high: 4 });
  const over = (op: typeof softmax) => (x: Tensor) => op(x, axis);
  await expectComposed(over(softmax), over(composedSoftmax), [x]);
  await expectComposed(over(logSoftmax), over(composedLogSoftmax), [x]);
});
