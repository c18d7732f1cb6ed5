import { describe, expect, test } from "vitest";
import { grad, noGrad, recompute } from "../../lib/autograd.js";
import { tensor, zeros } from "../../lib/create.js";
import { AutogradError, ShapeError } from "../../lib/errors.js";
import { add, exp, mul, reshape, sub, sum, tanh } from "../../lib/ops/index.js";
import { memory, synchronize } from "../../lib/runtime.js";
import { scope } from "../../lib/scope.js";
import type { Tensor } from "../../lib/tensor.js";

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
    await synchronize();
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

  test("passes several outputs, of which one may stay unused", async () => {
    const x = leaf([1, 2]);
    const [a] = recompute("pair", [x], (z) => [mul(z as Tensor, 3), sub(z as Tensor, 1)] as const);
    sum(a).backward();
    expect(await numbers(x.grad)).toEqual([3, 3]);
  });
});
