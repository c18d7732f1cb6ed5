import { describe, expect, it } from "vitest";
import { differentiable } from "../../lib/core/autograd.js";
import { tensor } from "../../lib/core/create.js";
import { AutogradError, LlamaForgeError } from "../../lib/core/errors.js";
import { checkGradients } from "../../lib/core/grad-check.js";
import { memory } from "../../lib/core/runtime.js";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { add, mul } from "../../lib/ops/binary.js";
import { gather } from "../../lib/ops/gather.js";
import { mean, sum } from "../../lib/ops/reduce.js";
import { softmax } from "../../lib/ops/softmax.js";
import { exp, sin, tanh } from "../../lib/ops/unary.js";
import { fromReference } from "../support/operations.js";
import { random } from "../support/reference.js";
import { settled } from "../support/settled.js";

const small = (shape: number[], seed: number) => fromReference(random(shape, seed));

describe("checkGradients", () => {
  it("accepts right gradients of several inputs and names the worst element", async () => {
    await scope(async () => {
      const inputs = [small([3, 4], 1), small([4], 2)];
      const result = await checkGradients((x, w) => softmax(mul(tanh(x), exp(w))), inputs);
      expect(result.error).toBeLessThan(1e-3);
      expect(result.error).toBeGreaterThan(0);
      expect(result.index.length).toBe((inputs[result.input] as Tensor).rank);
    });
  });

  it("takes scalars and passes i32 inputs through", async () => {
    await scope(async () => {
      const index = tensor([[0, 2, 2]], { dtype: "i32" });
      await checkGradients((x, i) => mean(sin(gather(x, i, 1))), [small([1, 4], 3), index]);
      await checkGradients((x) => mul(x, x), [tensor(0.7)]);
    });
  });

  // x² with a wrong backward; each case has one mistake.
  const wrongSquare = (fault: (dx: Tensor) => Tensor) => (x: Tensor) =>
    differentiable("square", {
      inputs: [x],
      outputs: [mul(x.detach(), x.detach())],
      saved: [x],
      backward: ([dy], [x]) => [fault(mul(mul(dy as Tensor, x as Tensor), 2))],
    });
  const oneWrongElement = tensor([
    [1, 1, 1],
    [1, 1.01, 1],
  ]);

  it.each<[string, (dx: Tensor) => Tensor]>([
    ["a wrong factor", (dx) => mul(dx, 1.01)],
    ["a wrong sign", (dx) => mul(dx, -1)],
    ["a gradient of zero", (dx) => mul(dx, 0)],
    ["a constant too many", (dx) => add(dx, 0.01)],
    ["a NaN", (dx) => mul(dx, Number.NaN)],
    ["one wrong element", (dx) => mul(dx, oneWrongElement)],
  ])("refuses %s", async (_, fault) => {
    await scope(async () => {
      const x = fromReference(random([2, 3], 4, { low: 0.5, high: 1 }));
      await expect(
        checkGradients(
          wrongSquare((dx) => dx),
          [x],
        ),
      ).resolves.toBeDefined();
      await expect(checkGradients(wrongSquare(fault), [x])).rejects.toThrow(AutogradError);
    });
  });

  it("names input, element and both numbers", async () => {
    await scope(async () => {
      const x = fromReference(random([2, 3], 4, { low: 0.5, high: 1 }));
      const y = small([2, 3], 5);
      const fn = (y: Tensor, x: Tensor) => add(y, wrongSquare((dx) => mul(dx, oneWrongElement))(x));
      await expect(checkGradients(fn, [y, x])).rejects.toThrow(
        /^\[checkGradients\] input 1 at \[1,1\]: backward gives -?[\d.]+, differences give -?[\d.]+ /,
      );
    });
  });

  it("refuses a gradient that is missing", async () => {
    await scope(async () => {
      const cut = (x: Tensor, w: Tensor) => sum(mul(x.detach(), w));
      await expect(checkGradients(cut, [small([3], 1), small([3], 2)])).rejects.toThrow(
        /input 0 at \[\d\]/,
      );
      await expect(checkGradients((x) => x.detach(), [small([3], 1)])).rejects.toThrow(
        AutogradError,
      );
    });
  });

  it.each<[string, () => Promise<unknown>, RegExp]>([
    ["no function", () => checkGradients(1 as never, []), /expected a function for fn/],
    [
      "no array",
      () => checkGradients((x) => x, tensor(1) as never),
      /expected an array of tensors/,
    ],
    ["nothing to check", () => checkGradients((x) => x, []), /at least one f32 tensor/],
    [
      "bf16",
      () => checkGradients((x) => x, [tensor(1, { dtype: "bf16" })]),
      /dtype f32 or i32 for inputs\[0\]/,
    ],
    [
      "an unknown option",
      () => checkGradients((x) => x, [tensor(1)], { epsilon: 1 } as never),
      /"epsilon"/,
    ],
    ["a step of 0", () => checkGradients((x) => x, [tensor(1)], { eps: 0 }), /for eps/],
    [
      "no tensor from fn",
      () => checkGradients((() => 3) as never, [tensor(1)]),
      /the result of fn/,
    ],
  ])("refuses %s", async (_, call, message) => {
    await scope(async () => {
      await expect(call()).rejects.toThrow(LlamaForgeError);
      await expect(call()).rejects.toThrow(message);
    });
  });

  it("leaves no tensor behind and the inputs' own gradients alone", async () => {
    await settled();
    const before = memory().tensors;
    await scope(async () => {
      const x = tensor([1, 2], { requiresGrad: true });
      const inside = memory().tensors;
      await checkGradients((x) => sum(exp(x)), [x]);
      expect(memory().tensors).toBe(inside);
      expect(x.grad).toBeNull();
      const weight = tensor([3, 4], { requiresGrad: true });
      await checkGradients((z) => sum(mul(exp(z), weight)), [x]);
      expect(weight.grad).toBeNull();
    });
    expect(memory().tensors).toBe(before);
  });
});
