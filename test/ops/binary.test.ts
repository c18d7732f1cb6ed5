import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ones, tensor } from "../../lib/core/create.js";
import { memory } from "../../lib/core/runtime.js";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { attention } from "../../lib/ops/attention.js";
import { add, div, maximum, minimum, mul, pow, sub } from "../../lib/ops/binary.js";
import { type BinaryKind, broadcastTo } from "../../lib/ops/broadcast.js";
import { gt } from "../../lib/ops/compare.js";
import { crossEntropy } from "../../lib/ops/cross-entropy.js";
import { linear } from "../../lib/ops/linear.js";
import { linearCrossEntropy } from "../../lib/ops/linear-cross-entropy.js";
import { matmul } from "../../lib/ops/matmul.js";
import { max, sum } from "../../lib/ops/reduce.js";
import { addRmsNorm, rmsNorm } from "../../lib/ops/rms-norm.js";
import { concat, stack } from "../../lib/ops/slice.js";
import { softmax } from "../../lib/ops/softmax.js";
import { tanh } from "../../lib/ops/unary.js";
import { where } from "../../lib/ops/where.js";
import { broadcastPair } from "../support/arbitraries.js";
import { checkOperation, fromReference } from "../support/operations.js";
import {
  at,
  broadcastShape,
  build,
  expectClose,
  map,
  type Reference,
  random,
  randomIntegers,
  reference,
  total,
  zip,
} from "../support/reference.js";

interface Case {
  op: (a: Tensor | number, b: Tensor | number) => Tensor;
  f: (a: number, b: number) => number;
  whole?: (a: number, b: number) => number;
}

const cases: { [K in BinaryKind]: Case } = {
  add: { op: add, f: (a, b) => a + b, whole: (a, b) => (a + b) | 0 },
  sub: { op: sub, f: (a, b) => a - b, whole: (a, b) => (a - b) | 0 },
  mul: { op: mul, f: (a, b) => a * b, whole: Math.imul },
  div: { op: div, f: (a, b) => a / b },
  minimum: { op: minimum, f: Math.min, whole: Math.min },
  maximum: { op: maximum, f: Math.max, whole: Math.max },
  pow: { op: pow, f: (a, b) => a ** b },
};
const kinds = Object.keys(cases) as BinaryKind[];

/** Operands for every operation: positive (pow), away from 0 (div) and apart (minimum, maximum). */
const operands = (shapeA: readonly number[], shapeB: readonly number[], seed = 1): Reference[] => [
  random(shapeA, seed, { low: 0.5, high: 1 }),
  random(shapeB, seed + 1, { low: 1.01, high: 2 }),
];

describe.each(kinds)("%s", (kind) => {
  const { op, f, whole } = cases[kind];
  const ref = (a: Reference, b: Reference) => zip(a, b, f);

  it.each([
    [[], []],
    [[1], [1]],
    [[31], [31]],
    [
      [3, 33],
      [3, 33],
    ],
    [[3, 33], [33]],
    [[33], [3, 33]],
    [
      [3, 1],
      [1, 5],
    ],
    [
      [2, 1, 17],
      [3, 1],
    ],
    [[4, 3], []],
    [
      [2, 1, 3, 1],
      [1, 4, 1, 5],
    ],
  ])("agrees with float64 on %j and %j", async (shapeA, shapeB) => {
    await checkOperation(kind, { op, ref, inputs: operands(shapeA, shapeB) });
    await checkOperation(`${kind}, exchanged`, {
      op,
      ref,
      inputs: operands(shapeA, shapeB).reverse(),
    });
  });

  it("takes a plain number on either side", async () => {
    const [x] = operands([2, 19], []) as [Reference];
    await checkOperation(kind, {
      op: (x) => op(x, 1.3),
      ref: (x) => map(x, (v) => f(v, 1.3)),
      inputs: [x],
    });
    await checkOperation(kind, {
      op: (x) => op(1.3, x),
      ref: (x) => map(x, (v) => f(1.3, v)),
      inputs: [x],
    });
  });

  it("propagates NaN from either side", async () => {
    await scope(async () => {
      const a = tensor([Number.NaN, 1, 1, 2]);
      const b = tensor([1, Number.NaN, 1, 3]);
      const values = await op(a, b).toArray();
      // 1 to the power of NaN is 1, by IEEE 754.
      expect([...values].map(Number.isNaN)).toEqual([true, kind !== "pow", false, false]);
    });
  });

  if (whole) {
    it("takes i32, which wraps around", async () => {
      const a = randomIntegers([5, 33], 4, -(2 ** 31), 2 ** 31);
      const b = randomIntegers([33], 5, -(2 ** 31), 2 ** 31);
      await scope(async () => {
        const y = op(fromReference(a, { dtype: "i32" }), fromReference(b, { dtype: "i32" }));
        expect(y.dtype).toBe("i32");
        await expectClose(y, zip(a, b, whole));
        await expectClose(
          op(fromReference(a, { dtype: "i32" }), -7),
          map(a, (v) => whole(v, -7)),
        );
      });
    });
  }
});

it("broadcasts any two shapes as NumPy does, and sums the gradients back", async () => {
  await fc.assert(
    fc.asyncProperty(broadcastPair, fc.constantFrom(...kinds), async ({ a, b }, kind) => {
      const { op, f } = cases[kind];
      const inputs = operands(a, b);
      await checkOperation(kind, { op, ref: (x, y) => zip(x, y, f), inputs, dtypes: ["f32"] });
    }),
    { numRuns: 150 },
  );
});

it("refuses what does not broadcast, whatever the shapes", () => {
  const shape = fc.array(fc.integer({ min: 1, max: 3 }), { maxLength: 4 });
  scope(() => {
    fc.assert(
      fc.property(shape, shape, (a, b) => {
        fc.pre(broadcastShape(a, b) === null);
        const [x, y] = operands(a, b).map((r) => fromReference(r)) as [Tensor, Tensor];
        expect(() => add(x, y)).toThrow(
          /^\[add\] shapes \[[\d,]*\] and \[[\d,]*\] do not broadcast: axis \d is/,
        );
      }),
      { numRuns: 50 },
    );
  });
});

it("shares the gradient of equal elements, as PyTorch's maximum and minimum", async () => {
  for (const op of [maximum, minimum]) {
    await scope(async () => {
      const a = tensor([1, 2, 3], { requiresGrad: true });
      const b = tensor([1, 3, 2], { requiresGrad: true });
      op(a, b).backward({ gradient: tensor([1, 1, 1]) });
      const first = op === maximum ? [0.5, 0, 1] : [0.5, 1, 0];
      expect([...((await a.grad?.toArray()) ?? [])]).toEqual(first);
      expect([...((await b.grad?.toArray()) ?? [])]).toEqual(first.map((v) => 1 - v));
    });
  }
});

it("has PyTorch's gradients of pow at its edges", async () => {
  await scope(async () => {
    const base = tensor([0, 0, -2, 0], { requiresGrad: true });
    const exponent = tensor([2, 0, 3, 1], { requiresGrad: true });
    pow(base, exponent).backward({ gradient: tensor([1, 1, 1, 1]) });
    expect([...((await base.grad?.toArray()) ?? [])]).toEqual([0, 0, 12, 1]);
    const [e0, e1, e2, e3] = (await exponent.grad?.toArray()) ?? [];
    expect([e0, e1, e2, e3]).toEqual([0, 0, Number.NaN, 0]);

    const x = tensor([-3, 0], { requiresGrad: true });
    pow(x, 2).backward({ gradient: tensor([1, 1]) });
    expect([...((await x.grad?.toArray()) ?? [])].map((v) => v + 0)).toEqual([-6, 0]);
  });
});

it("raises to powers within 2 units in the last place, also for negative bases and at IEEE 754's edges", async () => {
  const { NaN: nan, POSITIVE_INFINITY: inf } = Number;
  const bases = [0, -0, 1, -1, 2, -2, 0.5, 1e-3, -3, 1.0001, 7e4, 1e-40, 3e38, inf, -inf, nan];
  const exponents = [
    0,
    -0,
    1,
    -1,
    2,
    3,
    -3,
    0.5,
    -0.5,
    1 / 3,
    7.25,
    20,
    25,
    2 ** 24,
    inf,
    -inf,
    nan,
  ];
  const expected = (x: number, y: number): number => {
    if (x === 1 || y === 0) return 1; // where JavaScript differs from IEEE 754
    if (x === -1 && Math.abs(y) === inf) return 1;
    return Math.fround(x ** y);
  };
  await scope(async () => {
    const table = await pow(
      tensor(bases, { shape: [bases.length, 1] }),
      tensor(exponents),
    ).toArray();
    bases.forEach((base, i) => {
      exponents.forEach((exponent, j) => {
        const wanted = expected(Math.fround(base), Math.fround(exponent));
        const got = table[i * exponents.length + j] as number;
        const label = `${base} ** ${exponent}`;
        if (!Number.isFinite(wanted) || wanted === 0) expect(got, label).toBe(wanted);
        else {
          const unit = Math.max(Math.abs(wanted) * 2 ** -23, 2 ** -149);
          expect(Math.abs(got - wanted) / unit, label).toBeLessThanOrEqual(2);
        }
      });
    });

    const base = random([50000], 8, { low: 0.001, high: 20 });
    const exponent = random([50000], 9, { low: -12, high: 12 });
    const values = await pow(fromReference(base), fromReference(exponent)).toArray();
    let worst = 0;
    values.forEach((value, i) => {
      const exact = (base.data[i] as number) ** (exponent.data[i] as number);
      worst = Math.max(worst, Math.abs(value - exact) / (exact * 2 ** -23));
    });
    expect(worst).toBeLessThanOrEqual(1);
  });
});

it("does not round a plain number to bf16 before it is used", async () => {
  await scope(async () => {
    const factor = 1 + 2 ** -8 - 2 ** -12; // as bf16 it would be 1
    const y = mul(tensor([255], { dtype: "bf16" }), factor);
    expect(y.dtype).toBe("bf16");
    expect(await y.item()).toBe(256); // 255.93
  });
});

it("differentiates a composed expression with shared and broadcast operands", async () => {
  const inputs = [random([4, 5], 1, { low: 0.5, high: 1 }), random([5], 2, { low: 0.5, high: 1 })];
  await checkOperation("composed", {
    op: (x, w) => sum(div(tanh(mul(add(x, w), x)), add(mul(w, w), 1)), -1),
    ref: (x, w) =>
      build([4], ([row]) =>
        total(
          Array.from({ length: 5 }, (_, column) => {
            const v = at(x, [row as number, column]);
            const u = at(w, [column]);
            return Math.tanh((v + u) * v) / (u * u + 1);
          }),
        ),
      ),
    inputs,
  });
});

it("adds up the gradients of an operand that is used twice", async () => {
  await scope(async () => {
    const x = tensor([3], { requiresGrad: true });
    mul(x, x).backward();
    expect(await x.grad?.item()).toBe(6);
    add(x, x).backward();
    expect(await x.grad?.item()).toBe(8);
  });
});

describe("broadcastTo", () => {
  it.each([
    [[3], [4, 3]],
    [[1], [33]],
    [[], [2, 2]],
    [
      [2, 1, 3],
      [2, 5, 3],
    ],
    [
      [3, 1],
      [2, 3, 31],
    ],
    [
      [2, 3],
      [2, 3],
    ],
  ])("repeats %j to %j", async (from, to) => {
    await checkOperation("broadcastTo", {
      op: (x) => broadcastTo(x, to),
      ref: (x) => build(to, (position) => at(x, position)),
      inputs: [random(from, 3)],
    });
  });

  it("keeps every bit: NaN, infinities, -0 and i32", async () => {
    await scope(async () => {
      const x = tensor([Number.NaN, -0, Number.POSITIVE_INFINITY, -1e-40]);
      const values = await broadcastTo(x, [2, 4]).toArray();
      expect([...values]).toEqual([
        ...Float32Array.of(Number.NaN, -0, Infinity, -1e-40, Number.NaN, -0, Infinity, -1e-40),
      ]);
      const zeros = await broadcastTo(tensor([[-0], [0]]), [2, 2]).toArray();
      expect([...zeros]).toEqual([-0, -0, 0, 0]);
      const y = broadcastTo(tensor([[-(2 ** 31)], [5]], { dtype: "i32" }), [2, 2]);
      await expectClose(y, reference([2, 2], [-(2 ** 31), -(2 ** 31), 5, 5]));
    });
  });
});

it("frees its temporaries: outside of every scope only the result lives", () => {
  const before = memory().tensors;
  const x = tensor([
    [1, 2, 3],
    [4, 5, 6],
  ]);
  const row = tensor([1, 2, 3]);
  const column = tensor([[1], [2], [3]]);
  const batches = ones([2, 2, 3]);
  const qkv = ones([1, 2, 6]);
  const targets = tensor([0, 1], { dtype: "i32" });
  const made = [x, row, column, batches, qkv, targets];
  const results = [
    ...kinds.flatMap((kind) => [cases[kind].op(x, 2), cases[kind].op(2, x)]),
    gt(x, 2),
    softmax(x, 0),
    stack([x, x], 1),
    concat([x, x], 0),
    broadcastTo(x, [2, 2, 3]),
    max(x, 1),
    matmul(x, column),
    matmul(row, column),
    matmul(x, row),
    matmul(row, row),
    matmul(batches, column),
    linear(x, x),
    linear(row, x),
    rmsNorm(x, row),
    ...addRmsNorm(x, x, row),
    crossEntropy(x, targets),
    linearCrossEntropy(x, x, targets),
    attention(qkv, { heads: 1 }),
    where(targets, 1, 0),
  ];
  expect(memory().tensors).toBe(before + made.length + results.length);
  for (const result of [...made, ...results]) result.dispose();
  expect(memory().tensors).toBe(before);
});

it("and with gradients, once backward has run", () => {
  const before = memory().tensors;
  const leaf = (shape: number[]) => ones(shape, { requiresGrad: true });
  const [x, row, column, qkv] = [leaf([2, 3]), leaf([3]), leaf([3, 1]), leaf([1, 2, 6])];
  const targets = tensor([0, 1], { dtype: "i32" });
  for (const op of [
    () => matmul(x, column),
    () => matmul(row, column),
    () => linear(row, x),
    () => rmsNorm(x, row),
    () => crossEntropy(x, targets),
    () => linearCrossEntropy(x, x, targets),
    () => attention(qkv, { heads: 1 }),
  ]) {
    const y = op();
    const gradient = ones(y.shape);
    y.backward({ gradient });
    y.dispose();
    gradient.dispose();
  }
  for (const made of [x, row, column, qkv, targets]) made.dispose();
  expect(memory().tensors).toBe(before);
});
