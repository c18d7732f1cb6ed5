import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { tensor } from "../../lib/core/create.js";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { type Axes, max, mean, min, type ReduceOptions, sum } from "../../lib/ops/reduce.js";
import { shapeOf } from "../support/arbitraries.js";
import { checkOperation, fromReference } from "../support/operations.js";
import {
  expectClose,
  random,
  randomIntegers,
  reduce,
  reference,
  total,
  uniformSource,
} from "../support/reference.js";

interface Case {
  op: (x: Tensor, axes?: Axes, options?: ReduceOptions) => Tensor;
  f: (values: number[]) => number;
}

const cases: Record<string, Case> = {
  sum: { op: sum, f: total },
  mean: { op: mean, f: (values) => total(values) / values.length },
  max: { op: max, f: (values) => values.reduce((a, b) => Math.max(a, b)) },
  min: { op: min, f: (values) => values.reduce((a, b) => Math.min(a, b)) },
};
const names = Object.keys(cases);

describe.each(names)("%s", (name) => {
  const { op, f } = cases[name] as Case;

  it.each<[number[], Axes | undefined]>([
    [[], undefined],
    [[], 0],
    [[], -1],
    [[1], 0],
    [[31], undefined],
    [[33], [0]],
    [[5, 33], 1],
    [[5, 33], 0],
    [[5, 33], -2],
    [[3, 5, 7], 1],
    [
      [3, 5, 7],
      [0, 2],
    ],
    [
      [3, 5, 7],
      [2, -2],
    ],
    [
      [2, 3, 2, 5, 3],
      [0, 2, 4],
    ],
    [[2, 1, 3, 1], [1]],
    [[2, 600], 0],
  ])("reduces %j over %j", async (shape, axes) => {
    const list = axes === undefined ? undefined : [axes].flat();
    const inside = shape.length === 0 ? [] : list;
    for (const keepDims of [false, true]) {
      await checkOperation(name, {
        op: (x) => op(x, axes, { keepDims }),
        ref: (x) => reduce(x, f, inside, keepDims),
        inputs: [random(shape, 11, { low: 0.1, high: 2 })],
        // Rounding to bf16 makes ties. Finite differences split their gradient differently.
        gradient: name === "sum" || name === "mean" || shape.length === 0,
        eps: 1e-6,
      });
    }
  });

  it("reduces any shape over any axes", async () => {
    const problem = shapeOf(6, 1).chain((shape) =>
      fc.record({
        shape: fc.constant(shape),
        axes: fc.subarray(
          shape.map((_, axis) => axis),
          { minLength: 1 },
        ),
        keepDims: fc.boolean(),
        seed: fc.nat(10000),
      }),
    );
    await fc.assert(
      fc.asyncProperty(problem, async ({ shape, axes, keepDims, seed }) => {
        await checkOperation(name, {
          op: (x) => op(x, axes, { keepDims }),
          ref: (x) => reduce(x, f, axes, keepDims),
          inputs: [random(shape, seed, { low: 0.1, high: 2 })],
          dtypes: ["f32"],
          eps: 1e-7,
        });
      }),
      { numRuns: 60 },
    );
  });

  // Sizes around the kernel's blocks, pieces and tiles.
  it.each([
    [[65537], [0]],
    [[3, 70000], [1]],
    [[70000, 3], [0]],
    [[2, 9000, 17], [1]],
    [
      [1025, 2, 67],
      [0, 2],
    ],
    [[200, 700], [0]],
  ])("reduces %j over %j", async (shape, axes) => {
    const x = random(shape, 12, { low: -1, high: 2 });
    await checkOperation(name, {
      op: (x) => op(x, axes),
      ref: (x) => reduce(x, f, axes),
      inputs: [x],
      gradient: false,
    });
    if (name === "mean") return;
    const whole = randomIntegers(shape, 13, -(2 ** 31), 2 ** 31);
    await scope(async () => {
      const y = op(fromReference(whole, { dtype: "i32" }), axes);
      await expectClose(
        y,
        reduce(whole, (values) => f(values) | 0, axes),
      );
    });
  });

  it("gives NaN where there is one, wherever it stands", async () => {
    await scope(async () => {
      for (const place of [0, 1, 15, 16, 63, 64, 100, 128]) {
        const values = new Float32Array(129).fill(1);
        values[place] = Number.NaN;
        expect(await op(tensor(values)).item(), `all, at ${place}`).toBeNaN();
        const columns = await op(tensor(values, { shape: [3, 43] }), 0).toArray();
        const bad = [...columns].flatMap((value, i) => (Number.isNaN(value) ? [i] : []));
        expect(bad, `columns, at ${place}`).toEqual([place % 43]);
      }
    });
  });
});

it("takes infinities as extremes", async () => {
  await scope(async () => {
    const x = tensor([Number.NEGATIVE_INFINITY, Number.NEGATIVE_INFINITY]);
    expect(await max(x).item()).toBe(Number.NEGATIVE_INFINITY);
    expect(await min(x).item()).toBe(Number.NEGATIVE_INFINITY);
    expect(await sum(x).item()).toBe(Number.NEGATIVE_INFINITY);
  });
});

it.each([
  ["all", [10_000_000], undefined],
  ["the last axis", [4, 2_500_000], 1],
  ["the first axis", [2_500_000, 4], 0],
])("keeps six digits over ten million numbers along %s", async (_, shape, axes) => {
  const uniform = uniformSource(5);
  const values = Float32Array.from({ length: 10_000_000 }, () => 0.1 + uniform() * 1e-3);
  await scope(async () => {
    const x = tensor(values, { shape });
    const groups = axes === undefined ? 1 : 4;
    const exact = new Float64Array(groups);
    values.forEach((value, i) => {
      const group = axes === undefined ? 0 : axes === 1 ? Math.floor(i / 2_500_000) : i % 4;
      exact[group] = (exact[group] as number) + value;
    });
    await expectClose(sum(x, axes), reference(groups === 1 ? [] : [4], exact), 1e-6);
    const means = exact.map((value) => (value * groups) / values.length);
    await expectClose(mean(x, axes), reference(groups === 1 ? [] : [4], means), 1e-6);
  });
});

it("shares the gradient of max and min equally among ties", async () => {
  for (const [op, row] of [
    [max, [3, 1, 3, 3]],
    [min, [-3, 1, -3, -3]],
  ] as const) {
    for (const dtype of ["f32", "bf16"] as const) {
      await scope(async () => {
        const x = tensor([row, [0, 5, 2, 5].map((v) => (op === max ? v : -v))], {
          dtype,
          requiresGrad: true,
        });
        op(x, 1).backward({ gradient: tensor([3, 4], { dtype }) });
        const third = [1, 0, 1, 1];
        expect([...((await x.grad?.toArray()) ?? [])].map((v) => v + 0)).toEqual([
          ...third,
          0,
          2,
          0,
          2,
        ]);
      });
    }
  }
});

it("gives a NaN gradient where max is NaN, as PyTorch's amax", async () => {
  await scope(async () => {
    const x = tensor([[1, Number.NaN]], { requiresGrad: true });
    max(x, 1).backward();
    expect([...((await x.grad?.toArray()) ?? [])]).toEqual([Number.NaN, Number.NaN]);
  });
});
