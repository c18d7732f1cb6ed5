// Muon's interface and its numbers: 200 steps beside torch.optim.Muon (scripts/make_muon.py).
import { readFileSync } from "node:fs";
import { describe, expect, it, test } from "vitest";
import { tensor, zeros } from "../../lib/core/create.js";
import { ArgumentError } from "../../lib/core/errors.js";
import { native } from "../../lib/core/native.js";
import { memory } from "../../lib/core/runtime.js";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { Embedding, Linear, Module, Parameter, ParameterStore } from "../../lib/nn/index.js";
import { add, mul, sum } from "../../lib/ops/index.js";
import { Muon } from "../../lib/optim/muon.js";
import { orthogonal, orthogonalFlops } from "../../lib/optim/orthogonal.js";
import { random, relativeError } from "../support/reference.js";
import { settled } from "../support/settled.js";

const numbers = async (x: Tensor): Promise<number[]> => [...(await x.toArray())];

const shapes = { tall: [24, 16], wide: [12, 40], packed: [16, 16], norm: [40] } as const;
type Name = keyof typeof shapes;
const names = Object.keys(shapes) as Name[];

/** The parameters of scripts/make_muon.py. */
class Model extends Module {
  readonly tall = new Parameter([...shapes.tall], { kind: "normal", std: 1 }, [24]);
  readonly wide = new Parameter([...shapes.wide], { kind: "normal", std: 1 }, [12]);
  readonly packed = new Parameter([...shapes.packed], { kind: "normal", std: 1 }, [8, 4, 4]);
  readonly norm = new Parameter([...shapes.norm], { kind: "normal", std: 1 });
}

/** The numbers of `numbers` in scripts/make_muon.py, rounded to f32 like PyTorch's. */
function numbersOf(name: Name, step: number): Float32Array {
  const count = shapes[name].reduce((product: number, extent) => product * extent, 1);
  const salt = 97 * step + 31 * names.indexOf(name) + 1;
  return Float32Array.from({ length: count }, (_, i) => {
    let bits = BigInt.asUintN(32, BigInt(i) * 2654435761n + BigInt(salt) * 40503n);
    bits = BigInt.asUintN(32, (bits ^ (bits >> 15n)) * 2246822519n);
    return Number(bits ^ (bits >> 13n)) / 2 ** 31 - 1;
  });
}

interface Golden {
  settings: { lr: number; weightDecay: number; momentum: number };
  weights: Record<string, Record<Name, number[]>>;
}
const golden: Golden = JSON.parse(
  readFileSync(new URL("muon-steps.json", import.meta.url), "utf8"),
);

async function writeWeights(model: Model, values: (name: Name) => Float32Array): Promise<void> {
  for (const name of names) {
    const value = tensor(values(name), { shape: [...shapes[name]] });
    native.cast(value.native, model[name].tensor.native);
  }
}

describe("Muon", () => {
  it("makes 200 steps as torch.optim.Muon does in f32, and AdamW's for what is no matrix", async () => {
    const { lr, weightDecay, momentum } = golden.settings;
    const model = new Model();
    const store = new ParameterStore(model);
    const optimizer = new Muon(store, { momentum, weightDecay });
    await writeWeights(model, (name) => numbersOf(name, -1));
    const targets = Object.fromEntries(names.map((name) => [name, numbersOf(name, -2)]));
    for (let step = 1; step <= 200; step++) {
      await scope(async () => {
        let total: Tensor = zeros([]);
        for (const name of names) {
          const noise = numbersOf(name, step);
          const target = targets[name] as Float32Array;
          // Each operation rounds to f32, as PyTorch's do.
          const gradient = (await model[name].tensor.toArray()).map((w, i) =>
            Math.fround(
              Math.fround(Math.fround(w - (target[i] as number)) * 0.5) + (noise[i] as number),
            ),
          );
          const factor = tensor(gradient, { shape: [...shapes[name]] });
          total = add(total, sum(mul(model[name].tensor, factor)));
        }
        total.backward();
        optimizer.step({ lr });
      });
      const expected = golden.weights[step];
      if (!expected) continue;
      for (const name of names) {
        const got = await numbers(model[name].tensor);
        expect(relativeError(got, expected[name]), `${name} after ${step}`).toBeLessThan(1e-5);
      }
    }
    optimizer.dispose();
    store.dispose();
  });

  it("keeps second moments for AdamW's parameters alone, and leaves no tensor behind", async () => {
    await settled();
    const before = memory();
    const model = new Model();
    const store = new ParameterStore(model);
    const optimizer = new Muon(store);
    const [group] = store.groups;
    const { m, v } = optimizer.moments(group as never);
    expect([m.size, v.size]).toEqual([group?.size, 64]);
    let live = 0;
    for (let step = 0; step < 3; step++) {
      scope(() => {
        sum(mul(model.tall.tensor, model.tall.tensor)).backward();
        optimizer.step({ lr: 0.01, clip: 1 });
      });
      if (step > 0) expect(memory().tensors).toBe(live);
      live = memory().tensors;
    }
    optimizer.dispose();
    store.dispose();
    await settled();
    expect(memory().tensors).toBe(before.tensors);
  });

  it("changes no byte in a skipped step", async () => {
    const model = new Model();
    const store = new ParameterStore(model, { seed: 3 });
    const optimizer = new Muon(store);
    const step = (factor: number) =>
      scope(() => {
        const [tall, norm] = [model.tall.tensor, model.norm.tensor];
        add(sum(mul(tall, factor)), sum(mul(norm, factor))).backward();
        optimizer.step({ lr: 0.1 });
      });
    step(0.5);
    const [group] = store.groups;
    const { m, v } = optimizer.moments(group as never);
    const state = async () => [
      await numbers((group as never as { weights: Tensor }).weights),
      await numbers(m),
      await numbers(v),
    ];
    const before = await state();
    step(Number.NaN);
    expect(await state()).toEqual(before);
    step(0.5);
    expect(await state()).not.toEqual(before);
    optimizer.dispose();
    store.dispose();
  });

  it("leaves excluded matrices and frozen ones alone, and updates bf16 weights in their master", async () => {
    const model = new Model();
    const store = new ParameterStore(model, { dtype: "bf16", seed: 3 });
    model.freeze("wide");
    const optimizer = new Muon(store, { exclude: [model.packed], weightDecay: 0 });
    expect(names.filter((name) => optimizer.hasSecond(model[name]))).toEqual(["packed", "norm"]);
    const before = Object.fromEntries(
      await Promise.all(names.map(async (name) => [name, await numbers(model[name].master)])),
    );
    scope(() => {
      for (const name of names) {
        if (name === "wide") continue;
        const factor = tensor(numbersOf(name, 1), { shape: [...shapes[name]], dtype: "bf16" });
        sum(mul(model[name].tensor, factor)).backward();
      }
      optimizer.step({ lr: 0.01 });
    });
    const change = async (name: Name) =>
      (await numbers(model[name].master)).map((w, i) => w - before[name][i]);
    expect(await change("wide")).toEqual(Array(12 * 40).fill(0));
    // AdamW's first step moves each number by the learning rate.
    for (const moved of await change("packed")) expect(Math.abs(moved)).toBeCloseTo(0.01, 5);
    // Muon's has singular values near 0.2 · sqrt(24) · lr, and so a norm of that times sqrt(16).
    const size = Math.hypot(...(await change("tall"))) / (0.01 * 0.2 * Math.sqrt(24) * 4);
    expect(size).toBeGreaterThan(0.7);
    expect(size).toBeLessThan(1.2);
    optimizer.dispose();
    store.dispose();
  });

  test.each<[string, unknown, string]>([
    ["an option that it does not know", { nesterov: true }, 'received "nesterov"'],
    ["a momentum of 1", { momentum: 1 }, "for momentum but received the number 1"],
    ["what is no parameter", { exclude: [3] }, "a Parameter for a parameter of exclude"],
    ["AdamW's options out of range", { beta1: 2 }, "for beta1 but received the number 2"],
  ])("refuses %s", (_, options, message) => {
    const store = new ParameterStore(new Model());
    expect(() => new Muon(store, options as never)).toThrow(message);
    store.dispose();
  });

  it("refuses a model without matrices, and matrices without all rows", () => {
    const store = new ParameterStore(new Embedding(4, 8, 1));
    expect(() => new Muon(store)).toThrow(/this model has no matrices/);
    expect(() => new Muon({} as never)).toThrow(/a ParameterStore/);
    store.dispose();
    expect(() => new Parameter([4, 8], { kind: "normal", std: 1 }, [2, 1])).toThrow(ArgumentError);
    expect(() => new Linear(8, 4, 1, false, [4, 4])).toThrow(/with the 4 rows .* received \[4,4\]/);
  });
});

describe("orthogonal", () => {
  it.each([
    [8, 8],
    [24, 16],
    [12, 40],
    [1, 64],
    [33, 7],
  ])("brings the singular values of a %i x %i matrix near 1", async (rows, columns) => {
    const x = random([rows, columns], rows, { low: -3, high: 3 });
    for (const dtype of ["f32", "bf16"] as const) {
      const y = orthogonal(tensor(Float32Array.from(x.data), { shape: x.shape, dtype }));
      const values = await numbers(y);
      // The squares of the singular values are the eigenvalues of the smaller gram matrix.
      const side = Math.min(rows, columns);
      const at = (r: number, c: number) =>
        (rows <= columns ? values[r * columns + c] : values[c * columns + r]) as number;
      let trace = 0;
      for (let r = 0; r < side; r++) {
        for (let c = 0; c < Math.max(rows, columns); c++) trace += at(r, c) ** 2;
      }
      expect(Math.sqrt(trace / side)).toBeGreaterThan(0.65);
      expect(Math.sqrt(trace / side)).toBeLessThan(1.25);
    }
  });

  it("keeps zeros, and counts its operations", async () => {
    expect(await numbers(orthogonal(zeros([4, 6])))).toEqual(Array(24).fill(0));
    expect(orthogonalFlops(4, 6)).toBe(5 * (4 * 16 * 6 + 2 * 64));
    expect(orthogonalFlops(6, 4)).toBe(orthogonalFlops(4, 6));
  });
});
