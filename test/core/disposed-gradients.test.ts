/**
 * A user may dispose any tensor of the library. Later calls recreate it, or throw a DisposedError
 * before they change anything.
 */
import { expect, test } from "vitest";
import { ones } from "../../lib/core/create.js";
import { DisposedError } from "../../lib/core/errors.js";
import { keep, scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { Linear } from "../../lib/nn/linear.js";
import { ParameterStore } from "../../lib/nn/store.js";
import { sum } from "../../lib/ops/index.js";
import { AdamW } from "../../lib/optim/adamw.js";

const numbers = async (x: Tensor | null) => Array.from(await (x as Tensor).toArray());

test.each([true, false])(
  "a disposed gradient is made again (zeroGrad in between: %s)",
  async (zero) => {
    const w = ones([3], { requiresGrad: true });
    sum(w).backward();
    w.grad?.dispose();
    if (zero) w.zeroGrad();
    expect(w.grad).toBeNull();
    for (const expected of [1, 2]) {
      sum(w).backward();
      expect(await numbers(w.grad)).toEqual([expected, expected, expected]);
    }
  },
);

test("a parameter's disposed gradient is taken up again in the optimizer's buffer", async () => {
  const train = async (harm: (layer: Linear) => void) => {
    const layer = new Linear(3, 2, 1);
    const optimizer = new AdamW(new ParameterStore(layer, { seed: 1 }), { weightDecay: 0 });
    for (let step = 0; step < 3; step++) {
      harm(layer);
      scope(() => {
        sum(layer.forward(ones([1, 3]))).backward();
        optimizer.step({ lr: 0.1 });
      });
    }
    return await numbers(layer.weight.tensor);
  };
  const undisturbed = await train(() => {});
  expect(await train((layer) => layer.weight.tensor.grad?.dispose())).toEqual(undisturbed);
  const after = await train((layer) => {
    scope(() => sum(layer.forward(ones([1, 3]))).backward());
    layer.weight.tensor.grad?.dispose();
  });
  expect(after).toEqual(undisturbed);
});

test("weights, moments and the guard's state that were disposed are named before a step changes anything", async () => {
  const victims: ((layer: Linear, store: ParameterStore, optimizer: AdamW) => Tensor | null)[] = [
    (layer) => layer.weight.tensor,
    (_, store) => store.groups[0]?.weights ?? null,
    (_, store) => store.groups[0]?.master ?? null,
    (_, store, optimizer) => optimizer.moments(store.groups[0] as never).m,
    (_, store, optimizer) => optimizer.moments(store.groups[0] as never).v,
    (_layer, _store, optimizer) => optimizer.guardState,
  ];
  for (const victim of victims) {
    const layer = new Linear(3, 2, 1);
    const store = new ParameterStore(layer, { seed: 1, dtype: "bf16" });
    const optimizer = new AdamW(store);
    sum(layer.forward(ones([1, 3], { dtype: "bf16" }))).backward();
    victim(layer, store, optimizer)?.dispose();
    expect(() => optimizer.step({ lr: 0.1 })).toThrow(DisposedError);
  }
});

test("keep and operations refuse what a scope has freed", () => {
  let inner: Tensor | undefined;
  scope(() => {
    inner = ones([2]);
  });
  expect(() => keep(inner as Tensor)).toThrow(DisposedError);
  expect(() => sum(inner as Tensor)).toThrow(DisposedError);
});
