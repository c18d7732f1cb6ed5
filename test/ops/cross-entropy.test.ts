import { describe, expect, it } from "vitest";
import { tensor, zeros } from "../../lib/core/create.js";
import { ArgumentError, DTypeError, ShapeError } from "../../lib/core/errors.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { composedCrossEntropy, crossEntropy } from "../../lib/ops/cross-entropy.js";
import { expectComposed } from "../support/composed.js";
import { crossEntropyReference, someTargets } from "../support/cross-entropy-reference.js";
import { toTensor } from "../support/float-ops.js";
import {
  expectClose,
  finiteDifferences,
  map,
  type Reference,
  random,
  reference,
  tolerances,
} from "../support/reference.js";

const ids = (targets: number[], shape?: number[]) =>
  tensor(Int32Array.from(targets), { shape: shape ?? [targets.length] });

describe.each(["f32", "bf16"] as const)("crossEntropy in %s", (dtype) => {
  it.each([
    [1, 1],
    [1, 2],
    [3, 7],
    [5, 16],
    [4, 31],
    [17, 33],
  ])(
    "equals -log softmax at the target, and its gradient finite differences, for %i rows of %i classes",
    async (rows, classes) => {
      const targets = someTargets(rows, classes, -100);
      const x = random([rows, classes], 1, { low: -3, high: 3, dtype });
      const leaf = toTensor(x, dtype, true);
      const loss = crossEntropy(leaf, ids(targets));
      const composed = (x: Reference) => crossEntropyReference(x, targets, -100);
      const error = Math.abs((await loss.item()) - composed(x).data[0]!);
      expect(error).toBeLessThanOrEqual(1e-5 * Math.max(1, composed(x).data[0]!));
      loss.backward({ scale: 0.5 });
      const [expected] = finiteDifferences(composed, [x], reference([], [0.5])) as [Reference];
      // With one class the loss is 0 for any logit.
      if (classes === 1) expect([...(await (leaf.grad as Tensor).toArray())]).toEqual([0]);
      else await expectClose(leaf.grad as Tensor, expected, tolerances[dtype].gradient);
    },
  );

  it("is exact for logits far beyond the range of exp", async () => {
    const x = reference([2, 3], [1000, 990, -1000, -5000, -5000, -5000]);
    const loss = await crossEntropy(
      toTensor(
        map(x, (v) => v),
        "f32",
      ),
      ids([1, 2]),
    ).item();
    expect(loss).toBeCloseTo((10 + Math.log(3)) / 2, 4);
  });

  it("sums many classes without losing the small ones", async () => {
    const classes = 100_003;
    const x = reference([1, classes], () => 0);
    expect(await crossEntropy(toTensor(x, dtype), ids([classes - 1])).item()).toBeCloseTo(
      Math.log(classes),
      5,
    );
  });
});

it("leaves ignored rows out and gives them no gradient", async () => {
  const x = random([2, 3, 5], 2);
  const leaf = toTensor(x, "f32", true);
  crossEntropy(leaf, ids([0, 7, 1, 7, 7, 4], [2, 3]), { ignoreIndex: 7 }).backward();
  const gradient = [...(await (leaf.grad as Tensor).toArray())];
  for (const row of [1, 3, 4])
    expect([...gradient.slice(row * 5, row * 5 + 5)]).toEqual([0, 0, 0, 0, 0]);
  expect(gradient.reduce((sum, v) => sum + Math.abs(v), 0)).toBeGreaterThan(0.5);
});

it("is NaN with zero gradient when every target is ignored", async () => {
  const leaf = toTensor(random([3, 4], 3), "f32", true);
  const loss = crossEntropy(leaf, ids([-100, -100, -100]));
  loss.backward();
  expect(await loss.item()).toBeNaN();
  expect([...(await (leaf.grad as Tensor).toArray())]).toEqual(new Array(12).fill(0));
});

it("lets a NaN in a row reach the loss", async () => {
  const x = random([3, 40], 4);
  x.data[50] = Number.NaN;
  expect(await crossEntropy(toTensor(x), ids([1, 2, 3])).item()).toBeNaN();
});

it.each([5, -1, 2147483647])(
  "names row and id of a target %i that is no class, and stays usable",
  async (id) => {
    const loss = crossEntropy(zeros([4, 5]), ids([0, 1, id, 3]));
    await expect(loss.item()).rejects.toMatchObject({
      code: "ERR_TARGET",
      message: expect.stringContaining(`target ${id} of row 2`),
    });
    expect(await crossEntropy(zeros([4, 5]), ids([0, 1, 2, 3])).item()).toBeCloseTo(Math.log(5), 5);
  },
);

it.each([
  [1, 2],
  [4, 31],
  [17, 130],
])(
  "equals its composed form in value and gradient: %i rows of %i classes, some ignored",
  async (rows, classes) => {
    const targets = ids(someTargets(rows, classes, 5), [1, rows]);
    const of = (op: typeof crossEntropy) => (x: Tensor) => op(x, targets, { ignoreIndex: 5 });
    const x = random([1, rows, classes], 5, { low: -3, high: 3 });
    await expectComposed(of(crossEntropy), of(composedCrossEntropy), [x]);
  },
);

describe("bad input to crossEntropy", () => {
  const x = () => zeros([2, 3, 5]);
  it.each<[string, () => unknown, new (...a: never[]) => Error, string]>([
    [
      "targets of another shape",
      () => crossEntropy(x(), ids([1, 2, 3])),
      ShapeError,
      "expected shape [2,3] for targets (logits [2,3,5] without its last axis)",
    ],
    ["targets of floats", () => crossEntropy(x(), zeros([2, 3])), DTypeError, "targets"],
    [
      "integer logits",
      () => crossEntropy(zeros([2, 3], { dtype: "i32" }), ids([1, 2])),
      DTypeError,
      "f32 or bf16",
    ],
    ["a scalar", () => crossEntropy(zeros([]), ids([1])), ShapeError, "at least 1 axis"],
    [
      "an ignoreIndex of 1.5",
      () => crossEntropy(x(), ids([1, 2, 3, 4, 0, 0], [2, 3]), { ignoreIndex: 1.5 }),
      ArgumentError,
      "ignoreIndex",
    ],
    [
      "an unknown option",
      () => crossEntropy(x(), ids([1, 2, 3, 4, 0, 0], [2, 3]), { reduction: "sum" } as never),
      ArgumentError,
      "reduction",
    ],
  ])("refuses %s", (_, call, type, message) => {
    expect(call).toThrow(type);
    expect(call).toThrow(message);
  });
});
