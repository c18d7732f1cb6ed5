import { describe, expect, test } from "vitest";
import { grad, noGrad, recompute } from "../../lib/core/autograd.js";
import { tensor, zeros } from "../../lib/core/create.js";
import {
  ArgumentError,
  AutogradError,
  DisposedError,
  DTypeError,
  ShapeError,
} from "../../lib/core/errors.js";
import { memory, synchronize } from "../../lib/core/runtime.js";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { Linear } from "../../lib/nn/linear.js";
import { ParameterStore } from "../../lib/nn/store.js";
import { add, exp, mul, reshape, sub, sum, tanh } from "../../lib/ops/index.js";
import { settled } from "../support/settled.js";

const leaf = (values: number[]) => tensor(values, { requiresGrad: true });
const numbers = async (x: Tensor | null) => [...(await (x as Tensor).toArray())];

describe("backward", () => {
  test("adds up over every path to a leaf", async () => {
    const x = leaf([1, 2, 3]);
    sum(add(mul(x, x), add(x, x))).backward();
    expect(await numbers(x.grad)).toEqual([4, 6, 8]);
  });

  test("accumulates until zeroGrad, scaled", async () => {
    const x = leaf([1, 2]);
    sum(mul(x, 3)).backward();
    sum(mul(x, 3)).backward({ scale: 0.5 });
    expect(await numbers(x.grad)).toEqual([4.5, 4.5]);
    x.zeroGrad();
    expect(x.grad).toBe(null);
    sum(x).backward();
    expect(await numbers(x.grad)).toEqual([1, 1]);
  });

  test("takes the gradient of an output with several elements", async () => {
    const x = leaf([1, 2]);
    mul(x, x).backward({ gradient: tensor([1, 10]) });
    expect(await numbers(x.grad)).toEqual([2, 40]);
    expect(() => mul(x, x).backward()).toThrow(ShapeError);
    expect(() => mul(x, x).backward({ gradient: tensor([1]) })).toThrow(/\[2\].*\[1\]/);
  });

  test("refuses what it cannot use, and leaves the graph for another try", async () => {
    const x = leaf([1, 2]);
    const y = mul(x, x);
    const gone = tensor([1, 1]);
    gone.dispose();
    const refused: [unknown, new (...args: never[]) => Error, RegExp][] = [
      [tensor([1, 10]), ArgumentError, /an object for options but received a tensor/],
      [
        { grad: tensor([1, 10]) },
        ArgumentError,
        /options among gradient, scale but received "grad"/,
      ],
      [{ gradient: [1, 10] }, ArgumentError, /a tensor for gradient but received \[1,10\]/],
      [{ gradient: null }, ArgumentError, /a tensor for gradient but received null/],
      [{ gradient: gone }, DisposedError, /disposed/],
      [{ gradient: tensor([1, 10], { dtype: "bf16" }) }, DTypeError, /f32 and bf16/],
      [{ gradient: tensor([[1, 10]]) }, ShapeError, /\[2\].*\[1,2\]/],
      [{ gradient: tensor([1, 10]), scale: 2 }, ArgumentError, /either/],
      [{ scale: "2" }, ArgumentError, /a finite number for scale but received "2"/],
      [{ scale: Number.NaN }, ArgumentError, /a finite number for scale/],
    ];
    for (const [options, kind, message] of refused) {
      expect(() => y.backward(options as never)).toThrow(kind);
      expect(() => y.backward(options as never)).toThrow(message);
    }
    y.backward({ gradient: tensor([1, 10]) });
    expect(await numbers(x.grad)).toEqual([2, 40]);
  });

  test("of a bf16 leaf is f32", async () => {
    const x = tensor([1, 2], { dtype: "bf16", requiresGrad: true });
    sum(mul(x, x)).backward();
    expect(x.grad?.dtype).toBe("f32");
    expect(await numbers(x.grad)).toEqual([2, 4]);
  });

  test("runs a graph once: the second time says what happened", () => {
    const x = leaf([1]);
    const y = sum(mul(x, x));
    y.backward();
    expect(() => y.backward()).toThrow(/\[backward\].*has run already/);
  });

  test("of what a scope has freed says so", () => {
    const x = leaf([1]);
    let y: Tensor | undefined;
    {
      using _ = scope();
      y = mul(x, x);
    }
    expect(() => (y as Tensor).backward()).toThrow(/disposed/);
  });

  test("works from a tensor that was handed out of the scope that made its graph", async () => {
    const x = leaf([2, 3]);
    const loss = scope(() => sum(mul(exp(x), 1)));
    loss.backward();
    expect((await numbers(x.grad)).map((value) => value.toFixed(4))).toEqual(["7.3891", "20.0855"]);
  });

  test("without anything to differentiate is an error", () => {
    expect(() => sum(zeros([2])).backward()).toThrow(AutogradError);
    const x = leaf([1, 2]);
    expect(() => noGrad(() => sum(mul(x, x))).backward()).toThrow(/noGrad/);
    expect(x.detach().requiresGrad).toBe(false);
  });

  test("leaves no tensor behind, whether it ran or not", async () => {
    const x = leaf([1, 2, 3]);
    sum(mul(x, x)).backward();
    await settled();
    const before = memory();
    for (let turn = 0; turn < 5; turn++) {
      using _ = scope();
      const y = sum(tanh(mul(reshape(mul(x, x), [3, 1]), x)));
      if (turn % 2 === 0) y.backward();
    }
    await synchronize();
    expect(memory().tensors).toBe(before.tensors);
    expect(memory().bytes).toBe(before.bytes);
  });

  test("passes over leaves that were disposed meanwhile, and leaves nothing behind", async () => {
    const x = leaf([1, 2, 3]);
    sum(mul(x, x)).backward();
    await settled();
    const before = memory().tensors;
    for (let turn = 0; turn < 3; turn++) {
      using _ = scope();
      const other = leaf([1, 2, 3]);
      const y = sum(mul(mul(x, other), add(other, 1)));
      other.dispose();
      y.backward();
    }
    await synchronize();
    expect(memory().tensors).toBe(before);
    expect(await numbers(x.grad)).toEqual([2 + 3 * 2, 4 + 3 * 6, 6 + 3 * 12]);
  });

  test("noGrad holds across await and only there", async () => {
    const x = leaf([1]);
    const inside = await noGrad(async () => {
      await new Promise((resolve) => setTimeout(resolve, 1));
      return mul(x, 2).requiresGrad;
    });
    expect([inside, mul(x, 2).requiresGrad]).toEqual([false, true]);
  });
});

describe("grad", () => {
  test("gives gradients as tensors and leaves the inputs alone", async () => {
    const f = grad((a, b) => sum(mul(mul(a as Tensor, a as Tensor), b as Tensor)));
    const a = tensor([1, 2]);
    const b = tensor([3, 4]);
    const [da, db] = f(a, b);
    expect([await numbers(da as Tensor), await numbers(db as Tensor)]).toEqual([
      [6, 16],
      [1, 4],
    ]);
    expect([a.grad, b.grad, a.requiresGrad]).toEqual([null, null, false]);
  });

  test.each([false, true])(
    "touches no other gradient: of parameters, of leaves, of a graph before it (recompute: %s)",
    async (again) => {
      using _ = scope();
      const module = new Linear(2, 2, 1);
      const store = new ParameterStore(module, { seed: 1 });
      const weight = module.weight.tensor;
      const other = leaf([3, 4]);
      sum(module.forward(other)).backward();
      const before = [await numbers(weight.grad), await numbers(other.grad)];
      const earlier = mul(other, other);
      const late = leaf([5, 6]);
      const f = (x: Tensor): Tensor => add(mul(module.forward(mul(x, other)), late), earlier);
      const y = (x: Tensor): Tensor =>
        sum(again ? recompute("f", [x], (z) => [f(z as Tensor)])[0] : f(x));
      const [slope] = grad((x) => y(x as Tensor))(tensor([1, 2]));
      expect([await numbers(weight.grad), await numbers(other.grad)]).toEqual(before);
      expect(late.grad).toBe(null);
      const w = await numbers(weight);
      const expected = [0, 1].map(
        (i) => (i + 3) * (5 * (w[i] as number) + 6 * (w[2 + i] as number)),
      );
      for (const [i, value] of (await numbers(slope as Tensor)).entries()) {
        expect(value).toBeCloseTo(expected[i] as number, 4);
      }
      // The earlier graph is still usable.
      sum(earlier).backward();
      expect(await numbers(other.grad)).toEqual(
        [3, 4].map((v, i) => Math.fround(2 * v + (before[1]?.[i] as number))),
      );
      store.dispose();
    },
  );

  test("refuses what is no function, no tensor, and a result without a gradient", () => {
    expect(() => grad(1 as never)).toThrow(ArgumentError);
    expect(() => grad((x) => sum(x as Tensor))([1] as never)).toThrow(/\[grad\] expected a tensor/);
    expect(() => grad(() => 1 as never)(tensor([1]))).toThrow(/the result of fn/);
    expect(() => grad((x) => sum(x as Tensor))(tensor([1], { dtype: "i32" }))).toThrow(DTypeError);
    const first = grad((x) => sum(mul(x as Tensor, x as Tensor)));
    expect(() => grad((x) => sum(first(x as Tensor)[0] as Tensor))(tensor([3]))).toThrow(
      AutogradError,
    );
  });
});

describe("recompute", () => {
  const chain = (x: Tensor, w: Tensor) => tanh(mul(exp(mul(x, 0.1)), w));

  test("gives the same bits with less kept, for inputs and captured parameters", async () => {
    const results: number[][] = [];
    const kept: number[] = [];
    for (const again of [false, true]) {
      const x = leaf([0.1, -0.7, 1.3]);
      const w = leaf([0.3, 0.2, -0.4]);
      await synchronize();
      const before = memory().tensors;
      const input = mul(x, 1.5);
      const [y] = again
        ? recompute("chain", [input], (z) => [chain(z as Tensor, w)])
        : [scope(() => chain(input, w))];
      kept.push(memory().tensors - before);
      sum(mul(y as Tensor, input)).backward();
      results.push([...(await numbers(x.grad)), ...(await numbers(w.grad))]);
    }
    expect(results[1]).toEqual(results[0]);
    expect(kept[1]).toBeLessThan(kept[0] as number);
  });

  test("refuses a result that was not made inside", async () => {
    const x = mul(leaf([1, 2]), 1);
    const outside = mul(leaf([1, 2]), 2);
    expect(() => recompute("same", [x], (z) => [z as Tensor])).toThrow(
      /^\[recompute\] same returns a tensor that was not made inside/,
    );
    expect(() => recompute("outside", [x], () => [outside])).toThrow(AutogradError);
    expect(() => recompute("one", [x], ((z: Tensor) => mul(z, 2)) as never)).toThrow(
      /\[recompute\] expected an array of tensors for the result of fn but received a tensor/,
    );
  });

  test("passes several outputs, of which one may stay unused", async () => {
    const x = leaf([1, 2]);
    const [a] = recompute("pair", [x], (z) => [mul(z as Tensor, 3), sub(z as Tensor, 1)] as const);
    sum(a).backward();
    expect(await numbers(x.grad)).toEqual([3, 3]);
  });
});
