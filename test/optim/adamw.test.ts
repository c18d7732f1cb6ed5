// The interface of AdamW. test/ops/adamw.test.ts tests the kernel's numbers.
import { describe, expect, test } from "vitest";
import { tensor, zeros } from "../../lib/core/create.js";
import {
  ArgumentError,
  DTypeError,
  type LlamaForgeError,
  ShapeError,
} from "../../lib/core/errors.js";
import { memory, synchronize } from "../../lib/core/runtime.js";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { Linear, ParameterStore } from "../../lib/nn/index.js";
import { mul, sum } from "../../lib/ops/index.js";
import { AdamW } from "../../lib/optim/adamw.js";
import { finiteGuard } from "../../lib/optim/guard.js";
import { settled } from "../support/settled.js";

const numbers = async (x: Tensor) => [...(await x.toArray())];

function placed(options: { dtype?: "f32" | "bf16"; training?: boolean } = {}) {
  const module = new Linear(3, 2, 1);
  return { module, store: new ParameterStore(module, { seed: 1, ...options }) };
}

const pass = (module: Linear) => sum(mul(module.forward(tensor([[1, 2, 3]])), 2));

describe("made after a backward", () => {
  test("takes over the gradient that is there, with the same step as if it had been made before", async () => {
    const steps: unknown[] = [];
    await settled();
    const before = memory().tensors;
    for (const late of [false, true]) {
      await scope(async () => {
        const { module, store } = placed();
        let optimizer = late ? null : new AdamW(store);
        pass(module).backward();
        optimizer ??= new AdamW(store);
        expect(await numbers(module.weight.tensor.grad as Tensor)).toEqual([2, 4, 6, 2, 4, 6]);
        pass(module).backward(); // adds to it
        const { gradNorm } = optimizer.step({ lr: 0.1 });
        steps.push([await gradNorm.item(), await numbers(module.weight.tensor)]);
        expect((steps.at(-1) as [number])[0]).toBeCloseTo(2 * Math.sqrt(2 * 56), 4);
        optimizer.dispose();
        store.dispose();
      });
    }
    expect(steps[1]).toEqual(steps[0]);
    await synchronize();
    expect(memory().tensors).toBe(before);
  });

  test("does not bring back a gradient that zeroGrad has forgotten", async () => {
    using _ = scope();
    const { module, store } = placed();
    pass(module).backward();
    store.zeroGrad();
    const optimizer = new AdamW(store);
    expect(module.weight.tensor.grad).toBe(null);
    expect(await optimizer.step({ lr: 0.1 }).gradNorm.item()).toBe(0);
    optimizer.dispose();
    store.dispose();
  });
});

describe("refuses", () => {
  test("bf16 weights without a master copy, and says what to do", () => {
    const { store } = placed({ dtype: "bf16", training: false });
    expect(() => new AdamW(store)).toThrow(ArgumentError);
    expect(() => new AdamW(store)).toThrow(/create or load the model with training: true/);
    store.dispose();
    for (const options of [{ training: false }, { dtype: "bf16" as const }]) {
      const { store } = placed(options);
      new AdamW(store).dispose();
      store.dispose();
    }
  });

  test.each<[string, unknown, string]>([
    ["a name that it does not know", { betas: [0.9, 0.95] }, 'received "betas"'],
    ["a string", { beta1: "0.9" }, 'below 1 for beta1 but received "0.9"'],
    ["a beta of 1", { beta2: 1 }, "for beta2 but received the number 1"],
    ["NaN", { eps: Number.NaN }, "for eps but received the number NaN"],
    ["a negative decay", { weightDecay: -1 }, "for weightDecay but received the number -1"],
    ["another decay", { decay: "none" }, '"all" or "matrices" for decay but received "none"'],
    ["options that are none", 0.1, "an object for options but received the number 0.1"],
    ["a guard of one field", { guard: { window: 128 } }, "for guard.zLoss but received undefined"],
    ["a guard that is none", { guard: 3 }, "an object for guard but received the number 3"],
    ["half a window", { guard: { ...finiteGuard, window: 2.5 } }, "an integer from 2 to 65536"],
  ])("%s", (_, options, message) => {
    const { store } = placed();
    const before = memory().tensors;
    let error: LlamaForgeError | undefined;
    try {
      new AdamW(store, options as never);
    } catch (caught) {
      error = caught as LlamaForgeError;
    }
    expect(error).toBeInstanceOf(ArgumentError);
    expect(error?.message).toContain(message);
    expect(memory().tensors).toBe(before);
    store.dispose();
  });

  test("what is no store", () => {
    expect(() => new AdamW({} as never)).toThrow(/a ParameterStore .*received an object/);
  });

  test("a step that does not fit, and changes nothing then", async () => {
    using _ = scope();
    const { module, store } = placed();
    const optimizer = new AdamW(store);
    const weights = await numbers(module.weight.tensor);
    pass(module).backward();
    const step = (options: unknown) => () => optimizer.step(options as never);
    expect(step({})).toThrow(/\[AdamW.step\] expected a finite number of at least 0 for lr/);
    expect(step({ lr: "1e-3" })).toThrow(ArgumentError);
    expect(step({ lr: 1e-3, clip: -1 })).toThrow(/for clip/);
    expect(step({ lr: 1e-3, clipNorm: 1 })).toThrow(/received "clipNorm"/);
    expect(step({ lr: 1e-3, loss: 2 })).toThrow(/a tensor for loss/);
    expect(step({ lr: 1e-3, loss: zeros([2]) })).toThrow(ShapeError);
    expect(step({ lr: 1e-3, loss: zeros([], { dtype: "bf16" }) })).toThrow(DTypeError);
    expect(await numbers(module.weight.tensor)).toEqual(weights);
    expect(module.weight.tensor.grad).not.toBe(null);
    optimizer.dispose();
    store.dispose();
  });
});
