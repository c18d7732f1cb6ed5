// In-place writes between a forward pass and its backward. Backward computes with the saved values
// or throws.
import { describe, expect, test } from "vitest";
import { noGrad, recompute } from "../../lib/core/autograd.js";
import { ones, zeros } from "../../lib/core/create.js";
import { ArgumentError, AutogradError } from "../../lib/core/errors.js";
import { memory, synchronize } from "../../lib/core/runtime.js";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { Linear } from "../../lib/nn/linear.js";
import { ParameterStore, writeParameter } from "../../lib/nn/store.js";
import {
  add,
  addRmsNorm,
  attention,
  max,
  mul,
  randn,
  reshape,
  rope,
  ropeTable,
  softmax,
  square,
  sum,
} from "../../lib/ops/index.js";
import { AdamW } from "../../lib/optim/adamw.js";

const leaf = (shape: number[]) => randn(shape, { seed: 1, requiresGrad: true });
const turn = (x: Tensor, inPlace: boolean) => rope(x, ropeTable(8, 2), { heads: 2, inPlace });

function trainable(): { module: Linear; optimizer: AdamW } {
  const module = new Linear(3, 2, 1);
  return { module, optimizer: new AdamW(new ParameterStore(module, { seed: 1 })) };
}

describe("parameters", () => {
  test("an optimizer's step before backward is an error that says what to do; the next pass is right", () => {
    using _ = scope();
    const { module, optimizer } = trainable();
    const x = leaf([4, 3]);
    const y = sum(module.forward(x));
    optimizer.step({ lr: 0.1 });
    expect(() => y.backward()).toThrow(
      new AutogradError(
        "[backward] linear needs a tensor of shape [2,3] as it was in the forward pass, but AdamW.step has written over " +
          "it since: run backward() before that, or the forward pass again",
      ),
    );
    expect(x.grad).toBe(null);
    sum(module.forward(x)).backward();
    expect(x.grad).not.toBe(null);
  });

  test("nor may writeParameter come between, but for operations that do not need the weights", () => {
    using _ = scope();
    const { module } = trainable();
    const y = sum(module.forward(leaf([4, 3])));
    const plain = sum(module.weight.tensor);
    writeParameter(module.weight, zeros([2, 3]));
    expect(() => y.backward()).toThrow(/\[backward\] linear .*writeParameter/);
    plain.backward();
    expect(module.weight.tensor.grad).not.toBe(null);
  });

  test("recompute sees that parameters which only its function reads have changed", () => {
    using _ = scope();
    const { module, optimizer } = trainable();
    const x = leaf([4, 3]);
    const pass = () => sum(recompute("layer", [x], (z) => [module.forward(z as Tensor)])[0]);
    const y = pass();
    optimizer.step({ lr: 0.1 });
    expect(() => y.backward()).toThrow(
      /^\[backward\] layer needs a tensor of shape \[2,3\] .* AdamW.step has written over it/,
    );
    pass().backward();
    expect(module.weight.tensor.grad).not.toBe(null);
  });

  test("what is left of a graph that was refused is freed", async () => {
    const { module, optimizer } = trainable();
    scope(() => optimizer.step({ lr: 0 })); // tensors of the first step stay
    await synchronize();
    const before = memory().tensors;
    scope(() => {
      const y = sum(square(module.forward(ones([4, 3]))));
      optimizer.step({ lr: 0.1 });
      expect(() => y.backward()).toThrow(AutogradError);
    });
    expect(memory().tensors).toBe(before);
  });
});

test("a gradient that is computed with does not change under the tape", () => {
  using _ = scope();
  const [x, z] = [leaf([3]), leaf([3])];
  sum(square(x)).backward();
  const y = sum(mul(x.grad as Tensor, z));
  sum(square(x)).backward();
  expect(() => y.backward()).toThrow(/\[backward\] mul .*backward has written/);
});

describe("rope in place", () => {
  test("gives the bits and gradients of rope on a copy", async () => {
    const results: (Float32Array | Int32Array)[][] = [];
    for (const inPlace of [false, true]) {
      await scope(async () => {
        const x = leaf([1, 3, 4]);
        const y = turn(mul(x, 2), inPlace);
        sum(square(y)).backward();
        results.push([await y.toArray(), await (x.grad as Tensor).toArray()]);
      });
    }
    expect(results[1]).toEqual(results[0]);
  });

  test.each<[string, () => Tensor]>([
    ["softmax", () => softmax(mul(leaf([1, 3, 4]), 1))],
    ["attention", () => attention(mul(leaf([1, 3, 12]), 1), { heads: 1 })],
    ["max", () => max(leaf([1, 3, 4, 2]), 3)],
  ])("on what %s returned and needs itself makes its backward an error", (name, make) => {
    using _ = scope();
    const y = sum(turn(make(), true));
    expect(() => y.backward()).toThrow(new RegExp(`^\\[backward\\] ${name} .*rope has written`));
  });

  test("so it is on the sum of addRmsNorm, and on what an operation was given", () => {
    using _ = scope();
    const [rows, normed] = addRmsNorm(mul(leaf([1, 3, 4]), 1), ones([1, 3, 4]), ones([4]));
    const both = add(sum(turn(rows, true)), sum(normed));
    expect(() => both.backward()).toThrow(/^\[backward\] addRmsNorm .*rope has written/);
    const x = mul(leaf([1, 3, 4]), 1);
    const squares = sum(square(x));
    turn(x, true);
    expect(() => squares.backward()).toThrow(/^\[backward\] square .*rope has written/);
  });

  test("leaves the tensor that it wrote over without a gradient, and views of it", () => {
    using _ = scope();
    const x = mul(leaf([1, 3, 4]), 1);
    const view = reshape(x, [12]);
    turn(x, true);
    expect(() => mul(x, 2)).toThrow(/^\[mul\].*made by mul has been written over by rope/);
    expect(() => mul(view, 2)).toThrow(/^\[mul\].*made by reshape has been written over by rope/);
    expect(() => turn(x, true)).toThrow(/^\[rope\].*written over by rope/);
  });

  test("is refused on a leaf and on views of one, but for a leaf that is gone or needs no gradient", () => {
    using _ = scope();
    const x = leaf([1, 3, 4]);
    for (const view of [x, x.view([1, 3, 4]), x.detach(), reshape(x, [1, 3, 4])]) {
      expect(() => turn(view, true)).toThrow(ArgumentError);
      expect(() => turn(view, true)).toThrow(/a leaf that requires a gradient/);
    }
    noGrad(() => turn(x, true));
    const view = x.detach();
    x.requiresGrad = false;
    turn(view, true);
    x.requiresGrad = true;
    expect(() => turn(view, true)).toThrow(ArgumentError);
    x.dispose();
    turn(view, true);
  });

  test("is refused on the input of recompute, which would be turned twice", () => {
    using _ = scope();
    const x = mul(leaf([1, 3, 4]), 1);
    expect(() => recompute("turn", [x], (y) => [turn(y as Tensor, true)])).toThrow(
      /^\[recompute\] turn changes one of its inputs in place/,
    );
  });
});
