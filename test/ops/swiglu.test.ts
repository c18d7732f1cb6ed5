import { describe, expect, it } from "vitest";
import { tensor, zeros } from "../../lib/core/create.js";
import { ArgumentError, DTypeError, ShapeError } from "../../lib/core/errors.js";
import { composedSwiglu, swiglu } from "../../lib/ops/swiglu.js";
import { expectComposed } from "../support/composed.js";
import { expectOpMatches, toTensor } from "../support/float-ops.js";
import { at, build, expectClose, type Reference, random } from "../support/reference.js";

function composed(gateUp: Reference): Reference {
  const ffn = (gateUp.shape.at(-1) as number) / 2;
  return build([...gateUp.shape.slice(0, -1), ffn], (position) => {
    const column = position.at(-1) as number;
    const gate = at(gateUp, position);
    const up = at(gateUp, [...position.slice(0, -1), column + ffn]);
    return (gate / (1 + Math.exp(-gate))) * up;
  });
}

describe.each(["f32", "bf16"] as const)("swiglu in %s", (dtype) => {
  it.each([[[2]], [[1, 2]], [[3, 30]], [[2, 2, 62]], [[5, 64]], [[7, 66]]])(
    "equals the definition, and its gradient finite differences, for %j",
    async (shape) => {
      await expectOpMatches(swiglu, composed, [random(shape, 1, { low: -4, high: 4 })], dtype);
    },
  );

  it("is right at the model's size", async () => {
    const gateUp = random([512, 1408], 2, { low: -6, high: 6, dtype });
    await expectClose(swiglu(toTensor(gateUp, dtype)), composed(gateUp));
  });
});

it("neither overflows nor loses a NaN at the ends of the range", async () => {
  const gates = [-1e4, -100, -0, 0, 100, 1e4, Number.NaN];
  const gateUp = tensor([...gates.map((gate) => [gate, 2])], { requiresGrad: true });
  const y = swiglu(gateUp);
  expect([...(await y.toArray())]).toEqual([
    -0,
    expect.closeTo(0, 30),
    -0,
    0,
    200,
    2e4,
    Number.NaN,
  ]);
  y.backward({ gradient: tensor(gates.map(() => [1])) });
  const gradient = await gateUp.grad?.toArray();
  expect([...(gradient ?? [])].slice(0, -2).every(Number.isFinite)).toBe(true);
  expect([gradient?.[8], gradient?.[9]]).toEqual([2, 100]);
  expect([gradient?.[12], gradient?.[13]]).toEqual([Number.NaN, Number.NaN]);
});

it.each([
  [
    "an odd last axis",
    () => swiglu(zeros([4, 7])),
    ShapeError,
    "[swiglu] expected an even last axis",
  ],
  ["a scalar", () => swiglu(zeros([])), ShapeError, "received shape []"],
  ["integers", () => swiglu(zeros([4, 8], { dtype: "i32" })), DTypeError, "f32 or bf16"],
  ["a number", () => swiglu(3 as never), ArgumentError, "expected a tensor for gateUp"],
])("refuses %s", (_, call, type, message) => {
  expect(call).toThrow(type);
  expect(call).toThrow(message);
});

it.each([[[2]], [[3, 30]], [[2, 2, 62]], [[70, 128]]])(
  "equals its composed form in value and gradient, for %j",
  async (shape) => {
    await expectComposed(swiglu, composedSwiglu, [random(shape, 3, { low: -6, high: 6 })]);
  },
);
