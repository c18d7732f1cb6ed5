import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { tensor } from "../../lib/core/create.js";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import type { ComparisonKind } from "../../lib/ops/broadcast.js";
import { eq, ge, gt, le, lt, ne } from "../../lib/ops/compare.js";
import { broadcastPair } from "../support/arbitraries.js";
import { fromReference } from "../support/operations.js";
import { expectClose, map, randomIntegers, reference, zip } from "../support/reference.js";

interface Case {
  op: (a: Tensor | number, b: Tensor | number) => Tensor;
  holds: (a: number, b: number) => boolean;
}

const cases: { [K in ComparisonKind]: Case } = {
  eq: { op: eq, holds: (a, b) => a === b },
  ne: { op: ne, holds: (a, b) => a !== b },
  lt: { op: lt, holds: (a, b) => a < b },
  le: { op: le, holds: (a, b) => a <= b },
  gt: { op: gt, holds: (a, b) => a > b },
  ge: { op: ge, holds: (a, b) => a >= b },
};

describe.each(Object.keys(cases) as ComparisonKind[])("%s", (kind) => {
  const { op, holds } = cases[kind];
  const f = (a: number, b: number) => Number(holds(a, b));

  it.each(["f32", "bf16", "i32"] as const)("compares %s with broadcasting", async (dtype) => {
    await fc.assert(
      fc.asyncProperty(broadcastPair, fc.nat(1000), async ({ a, b }, seed) => {
        const [x, y] = [randomIntegers(a, seed, -2, 3), randomIntegers(b, seed + 1, -2, 3)];
        await scope(async () => {
          const result = op(fromReference(x, { dtype }), fromReference(y, { dtype }));
          expect(result.dtype).toBe("i32");
          await expectClose(result, zip(x, y, f));
          await expectClose(
            op(fromReference(x, { dtype }), 1),
            map(x, (v) => f(v, 1)),
          );
          await expectClose(
            op(1, fromReference(x, { dtype })),
            map(x, (v) => f(1, v)),
          );
        });
      }),
      { numRuns: 25 },
    );
  });

  it("treats NaN, infinities and zeros as IEEE 754 does", async () => {
    const values = [Number.NaN, 0, -0, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 1];
    await scope(async () => {
      const row = tensor(values);
      const column = tensor(values, { shape: [6, 1] });
      const expected = values.flatMap((a) => values.map((b) => f(a, b)));
      await expectClose(op(column, row), reference([6, 6], expected));
    });
  });
});

it("has no gradient", () => {
  scope(() => {
    const x = tensor([1, 2], { requiresGrad: true });
    expect(gt(x, 1).requiresGrad).toBe(false);
  });
});

it("rounds a number to the dtype of its tensor, so that a bf16 tensor made from it is equal to it", async () => {
  await scope(async () => {
    expect(await eq(tensor([0.1], { dtype: "bf16" }), 0.1).item()).toBe(1);
  });
});
