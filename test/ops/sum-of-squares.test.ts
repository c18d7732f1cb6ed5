import { describe, expect, it } from "vitest";
import { full, tensor, zeros } from "../../lib/core/create.js";
import { native } from "../../lib/core/native.js";
import { empty, type Tensor } from "../../lib/core/tensor.js";
import { toTensor } from "../support/float-ops.js";
import { random } from "../support/reference.js";

async function sumOfSquares(x: Tensor): Promise<number> {
  const sum = empty([1]);
  native.sumOfSquares(x.native, sum.native);
  return sum.item();
}

describe("sum of squares", () => {
  it.each([1, 31, 33, 16_383, 16_385, 200_003])(
    "is exact to the last f32 digit for %i elements",
    async (n) => {
      for (const dtype of ["f32", "bf16"] as const) {
        const x = random([n], 1, { low: -3, high: 3, dtype });
        const expected = x.data.reduce((sum, v) => sum + v * v, 0);
        expect(Math.abs((await sumOfSquares(toTensor(x, dtype))) / expected - 1)).toBeLessThan(
          1.2e-7,
        );
      }
    },
  );

  it("does not lose small values beside large ones", async () => {
    const n = 4_000_000;
    const x = new Float32Array(n).fill(1e-3);
    x[0] = 4096; // added to 2^24 in f32, every 1e-6 would vanish
    expect(await sumOfSquares(tensor(x))).toBe(
      Math.fround(4096 ** 2 + (n - 1) * Math.fround(1e-3) ** 2),
    );
  });

  it.each([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY])(
    "lets %f through from any place",
    async (bad) => {
      for (const place of [0, 17, 39_999, 40_000]) {
        const x = new Float32Array(40_001).fill(1);
        x[place] = bad;
        expect(Number.isFinite(await sumOfSquares(tensor(x)))).toBe(false);
      }
    },
  );

  it("becomes infinite where f32 ends", async () => {
    expect(await sumOfSquares(full([4], 5e18))).toBeCloseTo(1e38, -33);
    expect(await sumOfSquares(full([4], 1e20))).toBe(Number.POSITIVE_INFINITY);
  });

  it("refuses integers and a result of several elements", async () => {
    await expect(sumOfSquares(zeros([2], { dtype: "i32" }))).rejects.toThrow(
      "expected f32 or bf16 for x, got i32",
    );
    const sum = empty([2]);
    native.sumOfSquares(zeros([2]).native, sum.native);
    await expect(sum.toArray()).rejects.toThrow("expected sum of one element, got [2]");
  });
});
