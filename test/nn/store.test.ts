// A user's own module: the parameters that the store finds, their place in memory, and those that
// it refuses.
import { describe, expect, test } from "vitest";
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
import {
  Embedding,
  Linear,
  Module,
  Parameter,
  type ParameterGroupSpec,
  ParameterStore,
  RMSNorm,
  writeParameter,
} from "../../lib/nn/index.js";
import { add, mul, sum } from "../../lib/ops/index.js";
import { settled } from "../support/settled.js";

const numbers = async (x: Tensor) => [...(await x.toArray())];
const constant = (shape: number[], value: number) =>
  new Parameter(shape, { kind: "constant", value });

class Gate extends Module {
  readonly scale = constant([3], 2);
  readonly shift = constant([3], 0.5);

  forward(x: Tensor): Tensor {
    return add(mul(x, this.scale.tensor), this.shift.tensor);
  }
}

/** Every way in which a module holds parameters. `tied` is used twice. */
class Mixed extends Module {
  readonly bias = constant([5], 7);
  readonly gates = [new Gate(), new Gate()];
  readonly project = new Linear(3, 4, 0.5);
  readonly tied = this.project;
  readonly notes = ["not a module", 1, null];

  forward(x: Tensor): Tensor {
    for (const gate of this.gates) x = gate.forward(x);
    return this.project.forward(x);
  }
}

describe("a module of one's own", () => {
  test("finds parameters in itself, its children and arrays of them, each once and in order", () => {
    const module = new Mixed();
    expect([...module.namedParameters().keys()]).toEqual([
      "bias",
      "gates.0.scale",
      "gates.0.shift",
      "gates.1.scale",
      "gates.1.shift",
      "project.weight",
    ]);
    expect(module.parameterCount()).toBe(5 + 4 * 3 + 12);
    expect([...module.namedChildren().keys()]).toEqual(["gates.0", "gates.1", "project", "tied"]);
    expect(module.eval().gates[1]?.training).toBe(false);
  });

  test("has one group for its own parameters and one for each child", () => {
    const groups = new Mixed().parameterGroups();
    expect(groups.map(({ name, parameters }) => [name, ...parameters.keys()])).toEqual([
      ["own", "bias"],
      ["gates.0", "gates.0.scale", "gates.0.shift"],
      ["gates.1", "gates.1.scale", "gates.1.shift"],
      ["project", "project.weight"],
    ]);
  });

  test("computes and learns once a store has placed it", async () => {
    using _ = scope();
    const module = new Mixed();
    const store = new ParameterStore(module, { seed: 3 });
    writeParameter(
      module.project.weight,
      tensor([
        [1, 0, 0],
        [0, 1, 0],
        [0, 0, 1],
        [1, 1, 1],
      ]),
    );
    const y = module.forward(tensor([[1, 2, 3]]));
    expect(await numbers(y)).toEqual([5.5, 9.5, 13.5, 28.5]);
    sum(y).backward();
    expect(await numbers(module.gates[0]?.shift.tensor.grad as Tensor)).toEqual([4, 4, 4]);
    expect(module.bias.tensor.grad).toBe(null);
    store.dispose();
  });

  test("freezes by name and by path", () => {
    const module = new Mixed();
    module.freeze("gates.1").freeze("bias");
    const trainable = [...module.namedParameters()].filter(([, { trainable }]) => trainable);
    expect(trainable.map(([name]) => name)).toEqual([
      "gates.0.scale",
      "gates.0.shift",
      "project.weight",
    ]);
    expect(() => module.freeze("gate")).toThrow(/no parameter is called or lies under "gate"/);
  });
});

describe("a store", () => {
  test("places parameters as aligned views of one buffer a group, zero between them", async () => {
    const module = new Mixed();
    const store = new ParameterStore(module, { seed: 3 });
    const [own, first] = store.groups;
    expect([own?.size, first?.size]).toEqual([64, 128]);
    expect([...store.entries()].map(({ name, offset }) => `${name} ${offset}`)).toEqual([
      "bias 0",
      "gates.0.scale 0",
      "gates.0.shift 64",
      "gates.1.scale 0",
      "gates.1.shift 64",
      "project.weight 0",
    ]);
    expect((await numbers(first?.weights as Tensor)).filter((value) => value !== 0)).toEqual([
      2, 2, 2, 0.5, 0.5, 0.5,
    ]);
    expect(store.placeOf(module.gates[1]?.shift as Parameter).offset).toBe(64);
    expect(() => store.placeOf(constant([1], 0))).toThrow(ArgumentError);
    store.dispose();
    expect(() => module.forward(zeros([1, 3]))).toThrow(DisposedError);
  });

  test("initialises from the seed and the names alone", async () => {
    const weights = async (seed: number, dtype: "f32" | "bf16" = "f32") => {
      const module = new Mixed();
      const store = new ParameterStore(module, { seed, dtype });
      const values = await numbers(module.project.weight.master);
      store.dispose();
      return values;
    };
    expect(await weights(3)).toEqual(await weights(3));
    expect(await weights(3, "bf16")).toEqual(await weights(3));
    expect(await weights(4)).not.toEqual(await weights(3));
  });

  test("keeps f32 weights beside bf16 ones only for training", async () => {
    const module = new Gate();
    const store = new ParameterStore(module, { dtype: "bf16" });
    expect([module.scale.tensor.dtype, module.scale.master.dtype]).toEqual(["bf16", "f32"]);
    const other = new Gate();
    const lean = new ParameterStore(other, { dtype: "bf16", training: false });
    expect(other.scale.master).toBe(other.scale.tensor);
    expect(lean.groups[0]?.master).toBe(null);
    store.dispose();
    lean.dispose();
  });

  test("frees everything it made, gradients as well", async () => {
    await settled();
    const before = memory().tensors;
    scope(() => {
      const module = new Mixed();
      const store = new ParameterStore(module, { dtype: "f32" });
      sum(module.forward(zeros([1, 3]))).backward();
      store.dispose();
    });
    await synchronize();
    expect(memory().tensors).toBe(before);
  });

  test("refuses options that it does not know, and modules that it cannot place", () => {
    const make = (options: unknown) => () => new ParameterStore(new Gate(), options as never);
    expect(make({ dtyp: "bf16" })).toThrow(/options among .* but received "dtyp"/);
    expect(make({ dtype: "i32" })).toThrow(/"f32" or "bf16" for dtype but received "i32"/);
    expect(make({ device: "cpu" })).toThrow(/a device .* for device but received "cpu"/);
    expect(make({ seed: -1 })).toThrow(/an integer of at least 0 for seed/);
    expect(make({ training: "no" })).toThrow(/true or false for training but received "no"/);

    class Hidden extends Module {
      readonly list = [constant([1], 0)];
      readonly #secret = new Gate();
      forward(): Tensor {
        return add(this.#secret.scale.tensor, (this.list[0] as Parameter).tensor);
      }
    }
    const hidden = new Hidden();
    expect(() => new ParameterStore(hidden)).toThrow(
      /has no parameters: .*#private fields are not/,
    );
    expect(() => hidden.forward()).toThrow(AutogradError);
    expect(() => hidden.forward()).toThrow(
      /\[3\] has no memory yet: .*new ParameterStore\(module, \{ device \}\).*not those in arrays or #private/,
    );

    const placed = new Gate();
    const store = new ParameterStore(placed);
    expect(() => new ParameterStore(placed)).toThrow(/have been placed already/);
    store.dispose();

    class Grouped extends Gate {
      names = ["scale"];
      override parameterGroups(): ParameterGroupSpec[] {
        return this.names.map((name) => ({ name, parameters: new Map([[name, this.scale]]) }));
      }
    }
    expect(() => new ParameterStore(new Grouped())).toThrow(/leaves out the parameter shift/);
    const twice = new Grouped();
    twice.names.push("again");
    expect(() => new ParameterStore(twice)).toThrow(/names a parameter twice/);
  });
});

describe("writeParameter", () => {
  test.each(["f32", "bf16"] as const)(
    "sets the weights and their master copy in %s",
    async (dtype) => {
      using _ = scope();
      const module = new Gate();
      const store = new ParameterStore(module, { dtype });
      writeParameter(module.scale, tensor([1.00390625, -2, 3]));
      expect(await numbers(module.scale.master)).toEqual([1.00390625, -2, 3]);
      const rounded = dtype === "bf16" ? 1 : 1.00390625; // ties to even
      expect(await numbers(module.scale.tensor)).toEqual([rounded, -2, 3]);
      expect(await numbers(module.shift.master)).toEqual([0.5, 0.5, 0.5]);
      store.dispose();
    },
  );

  test("refuses what does not fit before anything is written", async () => {
    using _ = scope();
    const module = new Gate();
    const store = new ParameterStore(module);
    const write = (value: unknown) => () => writeParameter(module.scale, value as Tensor);
    expect(write([1, 2, 3])).toThrow(ArgumentError);
    expect(write(zeros([4]))).toThrow(ShapeError);
    expect(write(zeros([3], { dtype: "bf16" }))).toThrow(DTypeError);
    expect(await numbers(module.scale.tensor)).toEqual([2, 2, 2]);
    store.dispose();
  });
});

describe("modules", () => {
  test("Embedding, Linear and RMSNorm compute with their parameters", async () => {
    class All extends Module {
      readonly embedding = new Embedding(4, 2, 1);
      readonly norm = new RMSNorm(2);
      readonly linear = new Linear(2, 1, 1);
    }
    using _ = scope();
    const module = new All();
    const { embedding, norm, linear } = module;
    const store = new ParameterStore(module);
    writeParameter(
      embedding.weight,
      tensor([
        [0, 0],
        [3, 4],
        [0, 0],
        [6, 8],
      ]),
    );
    writeParameter(linear.weight, tensor([[1, 10]]));
    const x = embedding.forward(tensor([3, 1], { dtype: "i32" }));
    expect(await numbers(x)).toEqual([6, 8, 3, 4]);
    const [sum1, normed] = norm.forwardAdd(x, x);
    expect(await numbers(sum1)).toEqual([12, 16, 6, 8]);
    const rms = Math.sqrt(50 / 4);
    const y = await numbers(linear.forward(normed));
    expect(y[0]).toBeCloseTo((6 / 2 + 80 / 2) / rms, 4);
    expect(y[1]).toBeCloseTo((3 + 40) / rms, 4);
    store.dispose();
  });
});
