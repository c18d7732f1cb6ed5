import { describe, expect, it } from "vitest";
import { ones, zeros } from "../../lib/core/create.js";
import { ArgumentError, DisposedError, DTypeError, ShapeError } from "../../lib/core/errors.js";
import { memory } from "../../lib/core/runtime.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { mul } from "../../lib/ops/binary.js";
import {
  addRmsNorm,
  composedAddRmsNorm,
  composedRmsNorm,
  rmsNorm,
} from "../../lib/ops/rms-norm.js";
import { expectComposed } from "../support/composed.js";
import { expectOpMatches, toTensor } from "../support/float-ops.js";
import {
  build,
  expectClose,
  finiteDifferences,
  map,
  type Reference,
  random,
  reduce,
  relativeError,
  tolerances,
  total,
  zip,
} from "../support/reference.js";

const eps = 1e-5;

function composed(x: Reference, weight: Reference): Reference {
  const meanSquare = reduce(
    map(x, (v) => v * v),
    (v) => total(v) / v.length,
    [-1],
    true,
  );
  const normed = zip(x, meanSquare, (v, m) => v / Math.sqrt(m + eps));
  return zip(normed, weight, (v, w) => v * w);
}
const add = (a: Reference, b: Reference) => zip(a, b, (v, w) => v + w);

// Sizes around one and two vectors of 8 and 16 lanes, and around the 16 rows of the smallest block
// of the weight gradient.
const shapes = [
  [1, 2],
  [3, 7],
  [2, 2, 31],
  [15, 17],
  [17, 32],
  [33, 33],
].map((shape) => ({ shape }));

describe.each(["f32", "bf16"] as const)("rmsNorm in %s", (dtype) => {
  it.each(shapes)(
    "equals the definition, and its gradients finite differences, for $shape",
    async ({ shape }) => {
      const hidden = shape.at(-1) as number;
      const x = random(shape, 1, { low: -2, high: 2 });
      const weight = random([hidden], 2, { low: 0.5, high: 1.5 });
      await expectOpMatches((x, w) => rmsNorm(x, w, eps), composed, [x, weight], dtype);
    },
  );

  it("adds the residual first and differentiates through both results", async () => {
    for (const [rows, hidden] of [
      [3, 7],
      [17, 33],
    ] as const) {
      const [x, skip] = [random([rows, hidden], 1), random([rows, hidden], 2)];
      const [w1, w2] = [
        random([hidden], 3, { low: 0.5, high: 1.5 }),
        random([hidden], 4, { low: 0.5, high: 1.5 }),
      ];
      // The second norm reads both results of the first, so both of the first's outputs get a
      // gradient.
      const op = (x: Tensor, skip: Tensor, w1: Tensor, w2: Tensor): Tensor => {
        const [sum, normed] = addRmsNorm(x, skip, w1, eps);
        return addRmsNorm(normed, sum, w2, eps)[1];
      };
      const reference = (
        x: Reference,
        skip: Reference,
        w1: Reference,
        w2: Reference,
      ): Reference => {
        const sum = add(x, skip);
        return composed(add(composed(sum, w1), sum), w2);
      };
      await expectOpMatches(op, reference, [x, skip, w1, w2], dtype);
    }
  });

  it("passes a gradient on when only one of the two results is used", async () => {
    const [x, skip] = [random([5, 9], 1, { dtype }), random([5, 9], 2, { dtype })];
    const weight = random([9], 3, { dtype });
    const incoming = random([5, 9], 4, { dtype });
    for (const which of [0, 1] as const) {
      const leaves = [x, skip, weight].map((v) => toTensor(v, dtype, true)) as [
        Tensor,
        Tensor,
        Tensor,
      ];
      addRmsNorm(...leaves, eps)[which].backward({ gradient: toTensor(incoming, dtype) });
      const fn = (x: Reference, s: Reference, w: Reference) =>
        which === 0 ? add(x, s) : composed(add(x, s), w);
      const [dx, dSkip, dWeight] = finiteDifferences(
        fn,
        [x, skip, weight],
        incoming,
      ) as Reference[];
      await expectClose(leaves[0].grad as Tensor, dx as Reference, tolerances[dtype].gradient);
      await expectClose(leaves[1].grad as Tensor, dSkip as Reference, tolerances[dtype].gradient);
      if (which === 0) expect(leaves[2].grad).toBeNull();
      else
        await expectClose(
          leaves[2].grad as Tensor,
          dWeight as Reference,
          tolerances[dtype].gradient,
        );
    }
  });
});

it("takes a weight of another dtype than x, and its gradient adds up over micro-batches", async () => {
  const x = random([40, 19], 1, { dtype: "bf16" });
  const weight = random([19], 2);
  const leaf = toTensor(weight, "f32", true);
  const gradient = random([40, 19], 3, { dtype: "bf16" });
  for (let step = 0; step < 3; step++) {
    const y = rmsNorm(toTensor(x, "bf16"), leaf);
    expect(y.dtype).toBe("bf16");
    y.backward({ gradient: toTensor(gradient, "bf16") });
  }
  const [expected] = finiteDifferences((w) => composed(x, w), [weight], gradient);
  await expectClose(
    leaf.grad as Tensor,
    map(expected as Reference, (v) => 3 * v),
    1e-5,
  );
});

it("normalises rows of any length and size at the model's width", async () => {
  const x = random([2048, 256], 5, { low: -3, high: 3 });
  const weight = random([256], 6);
  await expectClose(rmsNorm(toTensor(x), toTensor(weight)), composed(x, weight));
  const tiny = build([2, 300], () => 1e-3);
  const values = await rmsNorm(toTensor(tiny), ones([300])).toArray();
  expect(
    relativeError(
      values,
      composed(
        tiny,
        build([300], () => 1),
      ).data,
    ),
  ).toBeLessThan(1e-5);
});

it("lets a NaN through to its own row only", async () => {
  const x = random([4, 20], 1);
  x.data[25] = Number.NaN;
  const y = await rmsNorm(toTensor(x), ones([20])).toArray();
  const broken = [...y]
    .map((v, i) => (Number.isNaN(v) ? Math.floor(i / 20) : -1))
    .filter((row) => row >= 0);
  expect(new Set(broken)).toEqual(new Set([1]));
  expect(broken).toHaveLength(20);
});

it.each(shapes)(
  "equals its composed form in value and gradients, for $shape",
  async ({ shape }) => {
    const x = random(shape, 1, { low: -2, high: 2 });
    const skip = random(shape, 2);
    const weight = random([shape.at(-1) as number], 3, { low: 0.5, high: 1.5 });
    const norm = (op: typeof rmsNorm) => (x: Tensor, weight: Tensor) => op(x, weight);
    await expectComposed(norm(rmsNorm), norm(composedRmsNorm), [x, weight]);
    // A product of both results, so that each gets a gradient.
    const both = (op: typeof addRmsNorm) => (x: Tensor, skip: Tensor, weight: Tensor) =>
      mul(...op(x, skip, weight));
    await expectComposed(both(addRmsNorm), both(composedAddRmsNorm), [x, skip, weight]);
  },
);

describe("bad input to the norms", () => {
  const x = () => zeros([4, 8, 16]);
  it.each([
    [
      "a weight of another length",
      () => rmsNorm(x(), ones([8])),
      ShapeError,
      "[rmsNorm] expected shape [16] for weight (last axis of x [4,8,16]) but received [8]",
    ],
    ["a weight with two axes", () => rmsNorm(x(), ones([1, 16])), ShapeError, "[rmsNorm]"],
    ["a scalar", () => rmsNorm(zeros([]), ones([1])), ShapeError, "received shape []"],
    [
      "integers",
      () => rmsNorm(zeros([4, 16], { dtype: "i32" }), ones([16])),
      DTypeError,
      "f32 or bf16",
    ],
    ["a negative eps", () => rmsNorm(x(), ones([16]), -1), ArgumentError, "eps"],
    ["an eps of NaN", () => rmsNorm(x(), ones([16]), Number.NaN), ArgumentError, "eps"],
    [
      "an array",
      () => rmsNorm([1, 2] as never, ones([2])),
      ArgumentError,
      "expected a tensor for x",
    ],
    [
      "a look-alike",
      () => rmsNorm(Object.create(x()) as Tensor, ones([16])),
      ArgumentError,
      "not a tensor",
    ],
    [
      "a skip of another shape",
      () => addRmsNorm(x(), zeros([4, 16]), ones([16])),
      ShapeError,
      "the shape of x",
    ],
    [
      "a skip of another dtype",
      () => addRmsNorm(x(), zeros([4, 8, 16], { dtype: "bf16" }), ones([16])),
      DTypeError,
      "one dtype",
    ],
  ])("refuses %s", (_, call, type, message) => {
    expect(call).toThrow(type);
    expect(call).toThrow(message);
  });

  it("refuses a disposed tensor, and leaves no tensor behind after a refusal", () => {
    const [input, weight] = [x(), ones([16])];
    weight.dispose();
    const before = memory().tensors;
    expect(() => rmsNorm(input, weight)).toThrow(DisposedError);
    expect(() => addRmsNorm(input, input, weight)).toThrow(DisposedError);
    expect(memory().tensors).toBe(before);
  });
});
