import fc from "fast-check";
import { expect, it } from "vitest";
import { tensor } from "../../lib/core/create.js";
import { scope } from "../../lib/core/scope.js";
import { gt } from "../../lib/ops/compare.js";
import { log } from "../../lib/ops/unary.js";
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
  type Shape,
} from "../support/reference.js";

const select = (condition: Reference, a: Reference, b: Reference): Reference => {
  const shape = broadcastShape(condition.shape, broadcastShape(a.shape, b.shape) as Shape) as Shape;
  return build(shape, (position) => at(at(condition, position) !== 0 ? a : b, position));
};

it("chooses with broadcasting of all three, and sums the gradients back", async () => {
  await fc.assert(
    fc.asyncProperty(broadcastPair, fc.nat(2), fc.nat(1000), async ({ a, b }, order, seed) => {
      const third = a.map(() => 1);
      const shapes = [a, b, third];
      const [shapeC, shapeA, shapeB] = [0, 1, 2].map((i) => shapes[(i + order) % 3]) as number[][];
      const condition = randomIntegers(shapeC as Shape, seed, -1, 2);
      await checkOperation("where", {
        op: (x, y) => where(fromReference(condition, { dtype: "i32" }), x, y),
        ref: (x, y) => select(condition, x, y),
        inputs: [random(shapeA as Shape, seed + 1), random(shapeB as Shape, seed + 2)],
      });
    }),
    { numRuns: 80 },
  );
});

it("takes plain numbers on either side or both", async () => {
  const x = random([3, 17], 2);
  const condition = map(x, (v) => Number(v > 0));
  await checkOperation("where", {
    op: (x) => where(gt(x, 0), x, -0.5),
    ref: (x) => map(x, (v) => (v > 0 ? v : -0.5)),
    inputs: [x],
  });
  await checkOperation("where", {
    op: (x) => where(gt(x, 0), -0.5, x),
    ref: (x) => map(x, (v) => (v > 0 ? -0.5 : v)),
    inputs: [x],
  });
  await scope(async () => {
    const y = where(fromReference(condition, { dtype: "i32" }), 1.5, 2.5);
    expect(y.dtype).toBe("f32");
    await expectClose(
      y,
      map(condition, (c) => (c ? 1.5 : 2.5)),
    );
    const whole = where(
      fromReference(condition, { dtype: "i32" }),
      7,
      tensor([-(2 ** 31)], { dtype: "i32" }),
    );
    await expectClose(
      whole,
      map(condition, (c) => (c ? 7 : -(2 ** 31))),
    );
  });
});

it("lets nothing of what is not chosen through, not even a NaN", async () => {
  await scope(async () => {
    const x = tensor([-1, 4], { requiresGrad: true });
    const y = where(gt(x, 0), log(x), 0);
    expect([...(await y.toArray())]).toEqual([0, Math.fround(Math.log(4))]);
    const a = tensor([Number.NaN, 1], { requiresGrad: true });
    const chosen = where(tensor([0, 1], { dtype: "i32" }), a, tensor([5, 6]));
    chosen.backward({ gradient: tensor([1, 1]) });
    expect([...(await chosen.toArray())]).toEqual([5, 1]);
    expect([...((await a.grad?.toArray()) ?? [])]).toEqual([0, 1]);
  });
});
