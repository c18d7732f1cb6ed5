import { describe, expect, it } from "vitest";
import { zeros } from "../../lib/core/create.js";
import { ArgumentError, DisposedError, DTypeError, ShapeError } from "../../lib/core/errors.js";
import { withIndependentRows } from "../../lib/core/independent-rows.js";
import { memory, synchronize } from "../../lib/core/runtime.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { composedLinear, linear } from "../../lib/ops/linear.js";
import { slice } from "../../lib/ops/slice.js";
import { expectComposed } from "../support/composed.js";
import { expectOpMatches, toTensor } from "../support/float-ops.js";
import {
  expectClose,
  map,
  matmul,
  permute,
  type Reference,
  random,
  reshape,
  tolerances,
  zip,
} from "../support/reference.js";

const composed = (x: Reference, weight: Reference): Reference => {
  const inputs = x.shape.at(-1) as number;
  const y = matmul(reshape(x, [x.data.length / inputs, inputs]), permute(weight, [1, 0]));
  return reshape(y, [...x.shape.slice(0, -1), weight.shape[0] as number]);
};

describe.each(["f32", "bf16"] as const)("linear in %s", (dtype) => {
  it.each([
    [[1], 1],
    [[7], 3],
    [[1, 4], 5],
    [[3, 7], 2],
    [[2, 2, 31], 9],
    [[5, 17], 33],
  ] as const)(
    "equals x · weightᵀ, and its gradients finite differences, for x %j and %i outputs",
    async (shape, outputs) => {
      const x = random(shape, 1);
      const weight = random([outputs, shape.at(-1) as number], 2);
      await expectOpMatches(linear, composed, [x, weight], dtype);
    },
  );

  it("gives a row the same bits among any number of rows where rows are independent", async () => {
    const [inputs, outputs, most] = [1100, 260, 700];
    const x = toTensor(random([most, inputs], 21), dtype);
    const weight = toTensor(random([outputs, inputs], 22), dtype);
    const bias = toTensor(random([outputs], 23), dtype);
    const of = (rows: number) =>
      withIndependentRows(() => linear(slice(x, [0, 0], [rows, inputs]), weight, bias).toArray());
    const all = await of(most);
    for (const rows of [1, 2, 3, 16, 17, 100, 256, 511]) {
      expect(await of(rows), `${rows} rows`).toEqual(all.slice(0, rows * outputs));
    }
    expect(await linear(x, weight, bias).toArray()).toHaveLength(all.length);
  });

  // Row counts on both sides of the threshold for the blocked weight layout, and odd sizes for its
  // padding.
  it.each([
    [1, 256, 96],
    [383, 33, 31],
    [384, 33, 31],
    [385, 64, 65],
    [511, 130, 7],
  ])(
    "is right in value and gradients for %i rows, %i inputs, %i outputs",
    async (rows, inputs, outputs) => {
      const x = random([rows, inputs], 3, { dtype });
      const weight = random([outputs, inputs], 4, { dtype });
      const dy = random([rows, outputs], 5, { dtype });
      const leaves = [toTensor(x, dtype, true), toTensor(weight, dtype, true)] as const;
      const y = linear(...leaves);
      await expectClose(y, composed(x, weight));
      y.backward({ gradient: toTensor(dy, dtype) });
      await expectClose(leaves[0].grad as Tensor, matmul(dy, weight), tolerances[dtype].gradient);
      await expectClose(
        leaves[1].grad as Tensor,
        matmul(permute(dy, [1, 0]), x),
        tolerances[dtype].gradient,
      );
    },
  );

  it("sums the weight's gradient over micro-batches in f32", async () => {
    const weight = toTensor(random([6, 5], 1, { dtype }), dtype, true);
    const x = random([2, 40, 5], 2, { dtype });
    const dy = random([2, 40, 6], 3, { dtype });
    for (let step = 0; step < 3; ++step)
      linear(toTensor(x, dtype), weight).backward({ gradient: toTensor(dy, dtype) });
    const one = matmul(permute(reshape(dy, [80, 6]), [1, 0]), reshape(x, [80, 5]));
    expect((weight.grad as Tensor).dtype).toBe("f32");
    // Products of bf16 numbers are exact in f32, so only the f32 sums are rounded, even in bf16.
    await expectClose(
      weight.grad as Tensor,
      map(one, (v) => 3 * v),
      1e-5,
    );
  });

  it("gives a weight that is no leaf its gradient too", async () => {
    const [x, a, b] = [random([9, 8], 1), random([8, 8], 2), random([4, 8], 3)];
    const op = (x: Tensor, a: Tensor, b: Tensor) => linear(x, linear(b, a));
    await expectOpMatches(op, (x, a, b) => composed(x, composed(b, a)), [x, a, b], dtype);
  });

  it.each([
    [[7], 3],
    [[3, 7], 2],
    [[2, 2, 31], 9],
  ] as const)("adds a bias, with its gradient: x %j, %i outputs", async (shape, outputs) => {
    const inputs = [random(shape, 1), random([outputs, shape.at(-1) as number], 2)];
    const ref = (x: Reference, weight: Reference, bias: Reference) => {
      const y = composed(x, weight);
      return zip(y, bias, (a, b) => a + b);
    };
    await expectOpMatches(linear, ref, [...inputs, random([outputs], 3)] as never, dtype);
  });

  it("sums the bias's gradient over micro-batches in f32", async () => {
    const bias = toTensor(random([6], 1, { dtype }), dtype, true);
    const [x, weight] = [random([2, 300, 5], 2, { dtype }), random([6, 5], 4, { dtype })];
    const dy = random([2, 300, 6], 3, { dtype });
    for (let step = 0; step < 3; ++step) {
      const y = linear(toTensor(x, dtype), toTensor(weight, dtype), bias);
      y.backward({ gradient: toTensor(dy, dtype) });
    }
    const one = matmul(map(random([1, 600], 9), () => 3) as Reference, reshape(dy, [600, 6]));
    expect((bias.grad as Tensor).dtype).toBe("f32");
    await expectClose(bias.grad as Tensor, reshape(one, [6]), tolerances.f32.gradient);
  });

  it("lets a NaN through to its own row only", async () => {
    const x = random([400, 16], 1, { dtype });
    x.data[16 * 7 + 2] = Number.NaN;
    const y = await linear(
      toTensor(x, dtype),
      toTensor(random([3, 16], 2, { dtype }), dtype),
    ).toArray();
    expect([...y].flatMap((v, i) => (Number.isNaN(v) ? [i] : []))).toEqual([21, 22, 23]);
  });
});

it("computes only the gradients that are needed", async () => {
  const [x, weight] = [random([4, 3], 1), random([2, 3], 2)];
  const leaf = toTensor(x, "f32", true);
  linear(leaf, toTensor(weight)).backward({ gradient: zeros([4, 2]) });
  expect(leaf.grad).not.toBeNull();
  const frozen = toTensor(x);
  linear(frozen, toTensor(weight, "f32", true)).backward({ gradient: zeros([4, 2]) });
  expect(frozen.grad).toBeNull();
});

it("leaves no tensor behind", async () => {
  const { scope } = await import("../../lib/core/scope.js");
  const before = memory().tensors;
  // V8 may collect forgotten tensors of earlier tests meanwhile; a leak of one a round is more than those.
  for (let round = 0; round < 300; round++) {
    scope(() => {
      const weight = toTensor(random([6, 5], 1), "f32", true);
      const x = toTensor(random([7, 5], 2), "f32", true);
      linear(x, weight).backward({ gradient: zeros([7, 6]) });
    });
  }
  await synchronize();
  expect(memory().tensors).toBeLessThanOrEqual(before);
});

it.each([
  [[7], 3],
  [[3, 7], 2],
  [[2, 2, 31], 9],
  [[400, 33], 65],
])("equals its composed form in value and gradients: x %j, %i outputs", async (shape, outputs) => {
  const inputs = [random(shape, 6), random([outputs, shape.at(-1) as number], 7)];
  await expectComposed(linear, composedLinear, inputs);
  await expectComposed(linear, composedLinear, [...inputs, random([outputs], 8)]);
});

describe("bad input to linear", () => {
  const [x, weight] = [() => zeros([4, 8, 16]), () => zeros([3, 16])];
  it.each<[string, () => unknown, new (...a: never[]) => Error, string]>([
    [
      "a weight that does not fit",
      () => linear(x(), zeros([16, 3])),
      ShapeError,
      "[linear] expected shape [any,16] for weight (last axis of x [4,8,16]) but received [16,3]",
    ],
    [
      "a weight with one axis",
      () => linear(x(), zeros([16])),
      ShapeError,
      "expected 2 axes for weight",
    ],
    ["a scalar", () => linear(zeros([]), weight()), ShapeError, "at least 1 axis for x"],
    [
      "a weight of another dtype",
      () => linear(x(), zeros([3, 16], { dtype: "bf16" })),
      DTypeError,
      "one dtype",
    ],
    [
      "a bias of another length",
      () => linear(x(), weight(), zeros([4])),
      ShapeError,
      "[linear] expected shape [3] for bias (first axis of weight) but received [4]",
    ],
    [
      "integers",
      () => linear(zeros([4, 16], { dtype: "i32" }), weight()),
      DTypeError,
      "f32 or bf16",
    ],
    [
      "an array",
      () => linear([[1, 2]] as never, weight()),
      ArgumentError,
      "expected a tensor for x",
    ],
    [
      "a look-alike",
      () => linear(Object.create(x()) as Tensor, weight()),
      ArgumentError,
      "not a tensor",
    ],
    [
      "a disposed tensor",
      () => {
        const w = weight();
        w.dispose();
        return linear(x(), w);
      },
      DisposedError,
      "disposed",
    ],
  ])("refuses %s", (_, call, type, message) => {
    expect(call).toThrow(type);
    expect(call).toThrow(message);
  });
});
