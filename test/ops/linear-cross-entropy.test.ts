import { describe, expect, it } from "vitest";
import { noGrad } from "../../lib/core/autograd.js";
import { tensor, zeros } from "../../lib/core/create.js";
import { defaultDevice } from "../../lib/core/device.js";
import { ArgumentError, AutogradError, DTypeError, ShapeError } from "../../lib/core/errors.js";
import { memory, resetPeakMemory, synchronize } from "../../lib/core/runtime.js";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { linear } from "../../lib/ops/linear.js";
import {
  composedLinearCrossEntropy,
  composedLinearTokenLosses,
  linearCrossEntropy,
  linearTargetScores,
  linearTokenLosses,
} from "../../lib/ops/linear-cross-entropy.js";
import { transpose } from "../../lib/ops/shape.js";
import { expectComposed } from "../support/composed.js";
import { crossEntropyReference, product, someTargets } from "../support/cross-entropy-reference.js";
import { toTensor } from "../support/float-ops.js";
import {
  expectClose,
  type FloatDType,
  finiteDifferences,
  map,
  matmul,
  permute,
  type Reference,
  random,
  reference,
  tolerances,
} from "../support/reference.js";

const ids = (targets: number[], shape?: number[]) =>
  tensor(Int32Array.from(targets), { shape: shape ?? [targets.length] });

/** Gradient of the logits for losses that each have a gradient of their own. */
function softmaxMinusTarget(
  x: Reference,
  weight: Reference,
  targets: number[],
  gradientOf: (row: number) => number,
  ignoreIndex = -100,
): Reference {
  const [rows, classes] = [x.shape[0] as number, weight.shape[0] as number];
  const logits = product(x, weight, false, true);
  const dLogits = reference([rows, classes], () => 0);
  for (let row = 0; row < rows; ++row) {
    if (targets[row] === ignoreIndex) continue;
    const values = logits.data.subarray(row * classes, (row + 1) * classes);
    const highest = values.reduce((a, b) => Math.max(a, b), -Infinity);
    const total = values.reduce((a, v) => a + Math.exp(v - highest), 0);
    values.forEach((v, i) => {
      dLogits.data[row * classes + i] =
        (Math.exp(v - highest) / total - (i === targets[row] ? 1 : 0)) * gradientOf(row);
    });
  }
  return dLogits;
}

/**
 * Gradients of the mean loss in closed form. A test below compares them with finite differences.
 */
function gradients(x: Reference, weight: Reference, targets: number[], ignoreIndex: number) {
  const logits = product(x, weight, false, true);
  const count = targets.filter((target) => target !== ignoreIndex).length;
  const dLogits = softmaxMinusTarget(x, weight, targets, () => 1 / count, ignoreIndex);
  return { dx: product(dLogits, weight), dWeight: product(dLogits, x, true), logits };
}

async function expectLoss(loss: Tensor, expected: number): Promise<void> {
  expect(loss.shape).toEqual([]);
  expect(loss.dtype).toBe("f32");
  expect(Math.abs((await loss.item()) - expected)).toBeLessThan(1e-5 * Math.max(1, expected));
}

describe.each(["f32", "bf16"] as const)("linearCrossEntropy in %s", (dtype: FloatDType) => {
  it.each([
    [1, 3, 2],
    [3, 4, 7],
    [4, 17, 31],
  ])(
    "equals the loss of the logits, and its gradients finite differences, for %i rows, hidden %i, %i classes",
    async (rows, hidden, classes) => {
      const targets = someTargets(rows, classes, -100);
      const [x, weight] = [
        random([rows, hidden], 1, { dtype }),
        random([classes, hidden], 2, { dtype }),
      ];
      const composed = (x: Reference, w: Reference) =>
        crossEntropyReference(matmul(x, permute(w, [1, 0])), targets, -100);
      const leaves = [toTensor(x, dtype, true), toTensor(weight, dtype, true)] as const;
      const loss = linearCrossEntropy(...leaves, ids(targets));
      await expectLoss(loss, composed(x, weight).data[0]!);
      loss.backward({ scale: 0.25 });
      const [dx, dWeight] = finiteDifferences(composed, [x, weight], reference([], [0.25])) as [
        Reference,
        Reference,
      ];
      await expectClose(leaves[0].grad as Tensor, dx, tolerances[dtype].gradient);
      await expectClose(leaves[1].grad as Tensor, dWeight, tolerances[dtype].gradient);
    },
  );

  // 66,000 classes make chunks of 64 rows. Cases are one whole chunk, several, and a shorter last
  // one.
  it.each([
    [60, 66_000],
    [64, 66_000],
    [65, 66_000],
    [131, 66_000],
    [700, 129],
  ])("is right over chunks of rows: %i rows, %i classes", async (rows, classes) => {
    const targets = someTargets(rows, classes, -100);
    const [x, weight] = [random([rows, 4], 3, { dtype }), random([classes, 4], 4, { dtype })];
    const expected = gradients(x, weight, targets, -100);
    const leaves = [toTensor(x, dtype, true), toTensor(weight, dtype, true)] as const;
    const loss = linearCrossEntropy(...leaves, ids(targets));
    await expectLoss(loss, crossEntropyReference(expected.logits, targets, -100).data[0]!);
    loss.backward();
    await expectClose(leaves[0].grad as Tensor, expected.dx, tolerances[dtype].gradient);
    await expectClose(leaves[1].grad as Tensor, expected.dWeight, tolerances[dtype].gradient);
  });

  it("adds the weight's gradient up over micro-batches", async () => {
    const targets = someTargets(9, 12, -100);
    const [x, weight] = [random([9, 5], 5, { dtype }), random([12, 5], 6, { dtype })];
    const leaf = toTensor(weight, dtype, true);
    for (let step = 0; step < 3; ++step)
      linearCrossEntropy(toTensor(x, dtype), leaf, ids(targets)).backward();
    const { dWeight } = gradients(x, weight, targets, -100);
    await expectClose(
      leaf.grad as Tensor,
      map(dWeight, (v) => 3 * v),
      tolerances[dtype].gradient,
    );
  });

  it("differentiates through what made x and weight", async () => {
    const targets = someTargets(6, 10, -100);
    const [x, a, weight] = [
      random([6, 4], 7, { dtype }),
      random([5, 4], 8, { dtype }),
      random([10, 5], 9, { dtype }),
    ];
    const leaves = [x, a, weight].map((v) => toTensor(v, dtype, true)) as [Tensor, Tensor, Tensor];
    const [lx, la, lw] = leaves;
    // The head is weight · a · aᵀ, so it is no leaf either.
    linearCrossEntropy(
      linear(lx, la),
      linear(linear(lw, transpose(la)), la),
      ids(targets),
    ).backward();
    const composed = (x: Reference, a: Reference, w: Reference) =>
      crossEntropyReference(
        matmul(
          matmul(x, permute(a, [1, 0])),
          permute(matmul(matmul(w, a), permute(a, [1, 0])), [1, 0]),
        ),
        targets,
        -100,
      );
    const expected = finiteDifferences(composed, [x, a, weight], reference([], [1]));
    for (const [i, gradient] of expected.entries()) {
      await expectClose(leaves[i]?.grad as Tensor, gradient, tolerances[dtype].gradient);
    }
  });

  it("has the same loss with and without gradients, and computes only the needed ones", async () => {
    const targets = ids(someTargets(100, 40, -100));
    const [x, weight] = [random([100, 16], 1, { dtype }), random([40, 16], 2, { dtype })];
    const loss = async (xGrad: boolean, wGrad: boolean) => {
      const leaves = [toTensor(x, dtype, xGrad), toTensor(weight, dtype, wGrad)] as const;
      const result = linearCrossEntropy(...leaves, targets);
      if (xGrad || wGrad) result.backward();
      expect([leaves[0].grad !== null, leaves[1].grad !== null]).toEqual([xGrad, wGrad]);
      return result.item();
    };
    const all = await loss(true, true);
    for (const [xGrad, wGrad] of [
      [false, false],
      [true, false],
      [false, true],
    ] as const) {
      expect(await loss(xGrad, wGrad)).toBe(all);
    }
    const quiet = noGrad(() =>
      linearCrossEntropy(toTensor(x, dtype, true), toTensor(weight, dtype, true), targets),
    );
    expect(quiet.requiresGrad).toBe(false);
    expect(await quiet.item()).toBe(all);
  });

  it("is NaN with zero gradients when every target is ignored", async () => {
    const leaves = [
      toTensor(random([3, 4], 3), dtype, true),
      toTensor(random([6, 4], 4), dtype, true),
    ] as const;
    const loss = linearCrossEntropy(...leaves, ids([7, 7, 7]), { ignoreIndex: 7 });
    loss.backward();
    expect(await loss.item()).toBeNaN();
    for (const leaf of leaves)
      expect([...(await (leaf.grad as Tensor).toArray())].every((v) => v === 0)).toBe(true);
  });
});

describe.each(["f32", "bf16"] as const)("linearTokenLosses in %s", (dtype: FloatDType) => {
  // As above: a row alone, whole chunks of 64 rows, and a shorter last one.
  it.each([
    [1, 3, 2],
    [4, 17, 31],
    [700, 16, 129],
    [131, 4, 66_000],
  ])(
    "gives each row's loss, and linearCrossEntropy its mean: %i rows, hidden %i, %i classes",
    async (...sizes) => {
      using _ = scope();
      const [rows, hidden, classes] = sizes;
      const targets = someTargets(rows, classes, -100);
      const [x, weight] = [
        random([rows, hidden], 11, { dtype }),
        random([classes, hidden], 12, { dtype }),
      ];
      const leaves = [toTensor(x, dtype), toTensor(weight, dtype)] as const;
      const losses = linearTokenLosses(...leaves, ids(targets));
      expect(losses.shape).toEqual([rows]);
      expect(losses.dtype).toBe("f32");
      expect(losses.requiresGrad).toBe(false);
      const values = await losses.toArray();
      const logits = product(x, weight, false, true);
      for (const [row, target] of targets.entries()) {
        const data = logits.data.slice(row * classes, (row + 1) * classes);
        const one = { shape: [1, classes], data };
        const expected = target === -100 ? 0 : crossEntropyReference(one, [target], -100).data[0]!;
        expect(Math.abs(values[row]! - expected)).toBeLessThan(1e-5 * Math.max(1, expected));
        if (target === -100) expect(values[row]).toBe(0);
      }
      const count = targets.filter((target) => target !== -100).length;
      const mean = Array.from(values).reduce((sum, loss) => sum + loss, 0) / count;
      const loss = await linearCrossEntropy(...leaves, ids(targets)).item();
      expect(Math.abs(mean - loss)).toBeLessThan(1e-6 * loss);
    },
  );

  it("takes batches of sequences, and ignores what it is told to", async () => {
    const [x, weight] = [random([2, 3, 4], 1, { dtype }), random([5, 4], 2, { dtype })];
    const run = (targets: number[], options = {}) =>
      linearTokenLosses(toTensor(x, dtype), toTensor(weight, dtype), ids(targets, [2, 3]), options);
    const all = run([0, 3, 1, 3, 3, 4]);
    expect(all.shape).toEqual([2, 3]);
    const values = [...(await all.toArray())];
    expect(values.every((loss) => loss > 0)).toBe(true);
    expect([...(await run([0, 3, 1, 3, 3, 4], { ignoreIndex: 3 }).toArray())]).toEqual(
      values.map((loss, row) => ([1, 3, 4].includes(row) ? 0 : loss)),
    );
    const none = run([-100, -100, -100, -100, -100, -100]);
    expect([...(await none.toArray())]).toEqual([0, 0, 0, 0, 0, 0]);
  });

  it("names row and id of a target that is not in the vocabulary", async () => {
    const bad = linearTokenLosses(
      zeros([3, 4], { dtype }),
      zeros([5, 4], { dtype }),
      ids([0, 1, 5]),
    );
    await expect(bad.toArray()).rejects.toMatchObject({
      code: "ERR_TARGET",
      message: expect.stringContaining("target 5 of row 2"),
    });
  });

  // 66,000 classes make chunks of 64 rows.
  it.each([
    [1, 3, 2],
    [9, 17, 31],
    [131, 4, 66_000],
  ])("has the gradient of each loss: %i rows, hidden %i, %i classes", async (...sizes) => {
    using _ = scope();
    const [rows, hidden, classes] = sizes;
    const targets = someTargets(rows, classes, -100);
    const [x, weight] = [
      random([rows, hidden], 3, { dtype }),
      random([classes, hidden], 4, { dtype }),
    ];
    const given = random([rows], 5, { low: -1.5, high: 1.5 });
    const leaves = [toTensor(x, dtype, true), toTensor(weight, dtype, true)] as const;
    for (let time = 0; time < 2; time++) {
      linearTokenLosses(...leaves, ids(targets)).backward({ gradient: toTensor(given) });
    }
    // The gradient of the mean, with the given numbers in the place of 1 / count.
    const dLogits = softmaxMinusTarget(x, weight, targets, (row) => given.data[row] as number);
    const twice = (gradient: Reference) => map(gradient, (v) => 2 * v);
    const tolerance = tolerances[dtype].gradient;
    await expectClose(leaves[0].grad as Tensor, twice(product(dLogits, weight)), tolerance);
    await expectClose(leaves[1].grad as Tensor, twice(product(dLogits, x, true)), tolerance);
  });
});

describe.each(["f32", "bf16"] as const)("linearTargetScores in %s", (dtype: FloatDType) => {
  // 70,001 classes are too many and too odd for a row to be held by a GPU's block.
  it.each([
    [1, 3, 2],
    [4, 17, 31],
    [131, 16, 132],
    [70, 4, 70_001],
  ])(
    "has linearTokenLosses' losses, bit for bit, and marks the argmax: %i rows, hidden %i, %i classes",
    async (...sizes) => {
      using _ = scope();
      const [rows, hidden, classes] = sizes;
      const [x, weight] = [
        random([rows, hidden], 21, { dtype }),
        random([classes, hidden], 22, { dtype }),
      ];
      const { data } = product(x, weight, false, true);
      const best = Array.from({ length: rows }, (_, row) => {
        const logits = data.subarray(row * classes, (row + 1) * classes);
        return logits.reduce((a, value, i) => (value > (logits[a] as number) ? i : a), 0);
      });
      // Every third row is ignored, every third has its argmax, the others have a neighbour of it.
      const targets = best.map((id, row) => [id, (id + 1) % classes, -100][row % 3] as number);
      const leaves = [toTensor(x, dtype), toTensor(weight, dtype)] as const;
      const { losses, greedy } = linearTargetScores(...leaves, ids(targets));
      expect([losses.dtype, greedy.dtype]).toEqual(["f32", "i32"]);
      expect([...(await greedy.toArray())]).toEqual(targets.map((_, row) => Number(row % 3 === 0)));
      const plain = await linearTokenLosses(...leaves, ids(targets)).toArray();
      expect(await losses.toArray()).toEqual(plain);
    },
  );

  it.each([
    ["the first of equal logits is the argmax", [1, 5, 2, 5, 5, 0], 1],
    ["a NaN is the largest, as in argmax", [1, 5, Number.NaN, 9, Number.NaN, 0], 2],
    ["equal logits alone have the first as argmax", [3, 3, 3, 3, 3, 3], 0],
  ])("%s", async (_, logits, expected) => {
    const weight = tensor(Float32Array.from(logits), { shape: [logits.length, 1], dtype });
    const x = tensor(new Float32Array(logits.length).fill(1), { shape: [2, 3, 1], dtype });
    const targets = ids([0, 1, 2, 3, 4, 5], [2, 3]);
    const { losses, greedy } = linearTargetScores(x, weight, targets);
    expect([losses.shape, greedy.shape]).toEqual([
      [2, 3],
      [2, 3],
    ]);
    expect([...(await greedy.toArray())]).toEqual(logits.map((_, i) => Number(i === expected)));
    const none = linearTargetScores(x, weight, ids(Array<number>(6).fill(-100), [2, 3]));
    expect([...(await none.greedy.toArray())]).toEqual([0, 0, 0, 0, 0, 0]);
  });

  it("has no gradient, and says so", () => {
    const leaf = zeros([3, 4], { dtype, requiresGrad: true });
    const call = () => linearTargetScores(leaf, zeros([5, 4], { dtype }), ids([0, 1, 2]));
    expect(call).toThrow(AutogradError);
  });
});

it("takes batches of sequences and ignores what it is told to", async () => {
  const [x, weight] = [random([2, 3, 4], 1), random([5, 4], 2)];
  const leaf = toTensor(x, "f32", true);
  linearCrossEntropy(leaf, toTensor(weight), ids([0, 3, 1, 3, 3, 4], [2, 3]), {
    ignoreIndex: 3,
  }).backward();
  const gradient = await (leaf.grad as Tensor).toArray();
  expect((leaf.grad as Tensor).shape).toEqual([2, 3, 4]);
  for (const row of [1, 3, 4])
    expect([...gradient.slice(row * 4, row * 4 + 4)]).toEqual([0, 0, 0, 0]);
});

// The contract on memory besides the gradients. The CPU holds at most 16 MiB of logits, rounded up
// to size classes, so that chunks stay in the cache. A GPU holds at most 2 GiB of logits with
// their gradient, because few rows would leave most of it idle.
it("never holds all logits", async () => {
  const onCuda = defaultDevice().type === "cuda";
  const [rows, classes] = onCuda ? [32_768, 65_536] : [4096, 8192];
  const allowed = onCuda ? 2 ** 31 + 16 * (rows + classes) + 12 * rows + 1e6 : 32e6;
  const x = zeros([rows, 4], { requiresGrad: true });
  const weight = zeros([classes, 4], { requiresGrad: true });
  await synchronize();
  resetPeakMemory();
  const before = memory().bytes;
  const targets = zeros([rows], { dtype: "i32" });
  const loss = linearCrossEntropy(x, weight, targets);
  expect(await loss.item()).toBeCloseTo(Math.log(classes), 4);
  expect(memory().peakBytes - before).toBeLessThan(allowed);
  const losses = await noGrad(() => linearTokenLosses(x, weight, targets)).toArray();
  expect(losses.at(-1)).toBeCloseTo(Math.log(classes), 4);
  expect(memory().peakBytes - before).toBeLessThan(allowed);
  expect(rows * classes * 4).toBeGreaterThan(3 * allowed);
});

it.each([5, -7])(
  "names row and id of a target %i that is not in the vocabulary, and changes nothing",
  async (id) => {
    const weight = toTensor(random([5, 4], 1), "f32", true);
    const bad = linearCrossEntropy(toTensor(random([3, 4], 2)), weight, ids([0, 1, id]));
    bad.backward();
    await expect(synchronize()).rejects.toMatchObject({
      code: "ERR_TARGET",
      message: expect.stringContaining(`target ${id} of row 2`),
    });
    const good = linearCrossEntropy(zeros([3, 4]), toTensor(random([5, 4], 1)), ids([0, 1, 2]));
    expect(await good.item()).toBeCloseTo(Math.log(5), 5);
  },
);

it.each([
  [1, 3, 2],
  [4, 17, 31],
  [70, 40, 129],
])(
  "equals its composed form in value and gradients: %i rows, hidden %i, %i classes",
  async (rows, hidden, classes) => {
    const targets = ids(someTargets(rows, classes, -100));
    const of = (op: typeof linearCrossEntropy) => (x: Tensor, w: Tensor) => op(x, w, targets);
    const inputs = [random([rows, hidden], 5), random([classes, hidden], 6)];
    await expectComposed(of(linearCrossEntropy), of(composedLinearCrossEntropy), inputs);
    await expectComposed(of(linearTokenLosses), of(composedLinearTokenLosses), inputs);
  },
);

describe("bad input to linearCrossEntropy", () => {
  const [x, weight, targets] = [
    () => zeros([2, 3, 4]),
    () => zeros([5, 4]),
    () => ids([0, 1, 2, 3, 4, 0], [2, 3]),
  ];
  it.each<[string, () => unknown, new (...a: never[]) => Error, string]>([
    [
      "a weight that does not fit",
      () => linearCrossEntropy(x(), zeros([5, 3]), targets()),
      ShapeError,
      "[any,4] for weight",
    ],
    [
      "targets of another shape",
      () => linearCrossEntropy(x(), weight(), ids([1, 2])),
      ShapeError,
      "[2,3] for targets",
    ],
    [
      "targets of floats",
      () => linearCrossEntropy(x(), weight(), zeros([2, 3])),
      DTypeError,
      "targets",
    ],
    [
      "two dtypes",
      () => linearCrossEntropy(x(), zeros([5, 4], { dtype: "bf16" }), targets()),
      DTypeError,
      "one dtype",
    ],
    [
      "an ignoreIndex out of range",
      () => linearCrossEntropy(x(), weight(), targets(), { ignoreIndex: 2 ** 31 }),
      ArgumentError,
      "ignoreIndex",
    ],
    ["an array", () => linearCrossEntropy(x(), [[1]] as never, targets()), ArgumentError, "weight"],
    [
      "for each token, a weight that does not fit",
      () => linearTokenLosses(x(), zeros([5, 3]), targets()),
      ShapeError,
      "[any,4] for weight (last axis of hidden",
    ],
    [
      "for each token, targets of another shape",
      () => linearTokenLosses(x(), weight(), ids([1, 2])),
      ShapeError,
      "[2,3] for targets",
    ],
  ])("refuses %s", (_, call, type, message) => {
    expect(call).toThrow(type);
    expect(call).toThrow(message);
  });
});
