import { describe, expect, it } from "vitest";
import { ones, zeros } from "../../lib/core/create.js";
import { ArgumentError, DTypeError, ShapeError } from "../../lib/core/errors.js";
import { memory, synchronize } from "../../lib/core/runtime.js";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { composedHeadNorm, headNorm } from "../../lib/ops/head-norm.js";
import { expectComposed } from "../support/composed.js";
import { toTensor } from "../support/float-ops.js";
import { checkOperation } from "../support/operations.js";
import { type Reference, random, reference } from "../support/reference.js";

const eps = 1e-6;

/** The definition in float64. */
const defined =
  (heads: number, kvHeads: number) =>
  (qkv: Reference, queryWeight: Reference, keyWeight: Reference): Reference => {
    const headSize = queryWeight.data.length;
    const width = (heads + 2 * kvHeads) * headSize;
    return reference(qkv.shape, (at) => {
      const [head, i] = [Math.floor((at % width) / headSize), at % headSize];
      const value = qkv.data[at] as number;
      if (head >= heads + kvHeads) return value;
      const first = at - i;
      let squares = 0;
      for (let j = 0; j < headSize; j++) squares += (qkv.data[first + j] as number) ** 2;
      const weight = (head < heads ? queryWeight : keyWeight).data[i] as number;
      return (value / Math.sqrt(squares / headSize + eps)) * weight;
    });
  };

const inputsOf = (batch: number, time: number, heads: number, kvHeads: number, size: number) => [
  random([batch, time, (heads + 2 * kvHeads) * size], 1, { low: -2, high: 2 }),
  random([size], 2, { low: 0.5, high: 1.5 }),
  random([size], 3, { low: 0.5, high: 1.5 }),
];

const sizes = [
  [1, 1, 1, 1, 2],
  [2, 3, 4, 2, 6],
  [1, 5, 3, 1, 16],
  [2, 9, 2, 2, 33],
] as const;

describe("headNorm", () => {
  it.each(sizes)(
    "equals the definition, and its gradients finite differences: %i x %i, %i heads, %i kv, size %i",
    async (batch, time, heads, kvHeads, size) => {
      await checkOperation("headNorm", {
        op: (qkv, q, k) =>
          headNorm(qkv as Tensor, q as Tensor, k as Tensor, { heads, kvHeads, eps }),
        ref: (qkv, q, k) =>
          defined(heads, kvHeads)(qkv as Reference, q as Reference, k as Reference),
        inputs: inputsOf(batch, time, heads, kvHeads, size),
      });
    },
  );

  it("equals its composed form", async () => {
    const options = { heads: 4, kvHeads: 2, eps };
    const run = (op: typeof headNorm) => (qkv: Tensor, q: Tensor, k: Tensor) =>
      op(qkv, q, k, options);
    await expectComposed(run(headNorm), run(composedHeadNorm), inputsOf(2, 7, 4, 2, 8));
  });

  it("leaves out the gradients that nobody needs", async () => {
    const [qkv, q, k] = inputsOf(1, 3, 2, 1, 4) as [Reference, Reference, Reference];
    const leaf = toTensor(k, "f32", true);
    headNorm(toTensor(qkv, "f32"), toTensor(q, "f32"), leaf, { heads: 2, kvHeads: 1 }).backward({
      gradient: ones([1, 3, 16]),
    });
    expect((await (leaf.grad as Tensor).toArray()).length).toBe(4);
  });

  it("keeps no memory once its result is gone", async () => {
    const before = memory().tensors;
    // As in the test of linear: a leak of one a round is more than V8 may collect meanwhile.
    for (let round = 0; round < 200; round++)
      scope(() => {
        const [qkv, q, k] = inputsOf(2, 5, 2, 1, 8).map((x) => toTensor(x, "f32", true)) as [
          Tensor,
          Tensor,
          Tensor,
        ];
        const y = headNorm(qkv, q, k, { heads: 2, kvHeads: 1 });
        y.backward({ gradient: ones(y.shape) });
      });
    await synchronize();
    expect(memory().tensors).toBeLessThanOrEqual(before);
  });

  const qkv = () => zeros([1, 2, 32]);
  it.each([
    [
      "a weight of another length",
      () => headNorm(qkv(), ones([8]), ones([4]), { heads: 2, kvHeads: 1 }),
      ShapeError,
      "[headNorm] expected shape [8] for keyWeight (head size 8) but received [4]",
    ],
    [
      "heads that do not fit",
      () => headNorm(qkv(), ones([8]), ones([8]), { heads: 3 }),
      ShapeError,
      "3 query, 3 key and 3 value heads",
    ],
    [
      "whole numbers",
      () => headNorm(zeros([1, 2, 32], { dtype: "i32" }), ones([8]), ones([8]), { heads: 2 }),
      DTypeError,
      "[headNorm]",
    ],
    [
      "a negative eps",
      () => headNorm(qkv(), ones([8]), ones([8]), { heads: 2, kvHeads: 1, eps: -1 }),
      ArgumentError,
      "eps",
    ],
    [
      "an unknown option",
      () => headNorm(qkv(), ones([8]), ones([8]), { heads: 2, size: 3 } as never),
      ArgumentError,
      "size",
    ],
  ])("refuses %s", (_, run, kind, message) => {
    expect(run).toThrow(kind);
    expect(run).toThrow(message);
  });
});
