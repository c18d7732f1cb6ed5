import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ArgumentError } from "../../lib/core/errors.js";
import { Apportionment } from "../../lib/data/apportion.js";

const weight = fc.double({ min: 1e-6, max: 1e6, noNaN: true });
const weightLists = (max: number) => fc.array(weight, { minLength: 1, maxLength: max });
const sum = (numbers: readonly number[]): number => numbers.reduce((a, b) => a + b, 0);

describe("apportionment of positions to sources", () => {
  it("counts differ from weight · n by no more than the bound, in every prefix", () => {
    fc.assert(
      fc.property(weightLists(9), (weights) => {
        const apportionment = new Apportionment(weights);
        const total = sum(weights);
        const counts = new Array<number>(weights.length).fill(0);
        for (let position = 0; position < 700; position++) {
          const { source, ordinal } = apportionment.at(position);
          expect(ordinal).toBe(counts[source]);
          counts[source] = ordinal + 1;
          weights.forEach((w, k) => {
            const error = Math.abs((counts[k] as number) - (w / total) * (position + 1));
            expect(error).toBeLessThanOrEqual(apportionment.bound + 1e-9);
          });
        }
        for (const [k, count] of counts.entries()) expect(apportionment.count(k, 700)).toBe(count);
      }),
      { numRuns: 60 },
    );
  });

  it("bounds the error by 1/2 for two sources, 1 for up to four, ceil(log2 k)/2 beyond", () => {
    fc.assert(
      fc.property(weightLists(20), (weights) => {
        const k = weights.length;
        const limit = k === 1 ? 0 : Math.ceil(Math.log2(k)) / 2;
        expect(new Apportionment(weights).bound).toBeLessThanOrEqual(limit);
      }),
    );
    expect(new Apportionment([7, 3]).bound).toBe(0.5);
    expect(new Apportionment([1, 1, 1, 1]).bound).toBe(0.75);
  });

  it.each([0, 1e6, 1e12, 2 ** 52])(
    "deals every position from %d on to exactly one source",
    (start) => {
      const weights = [0.693584, 0.306416, 1e-5, 0.99999];
      const apportionment = new Apportionment(weights);
      const next = weights.map((_, k) => apportionment.count(k, start));
      expect(sum(next)).toBe(start);
      for (let position = start; position < start + 1000; position++) {
        const { source, ordinal } = apportionment.at(position);
        expect(ordinal).toBe(next[source]);
        next[source] = ordinal + 1;
      }
      for (const [k, count] of next.entries()) {
        expect(apportionment.count(k, start + 1000)).toBe(count);
      }
    },
  );

  it("is exact far out, where doubles are not", () => {
    // At 10^12 the double product 0.99999999·n has steps of 1.2e-4: floor() of it rises by 2 in places.
    const apportionment = new Apportionment([99_999_999, 1]);
    for (const n of [1e12, 1e12 + 50_000_001, 9e15]) {
      const exact = (2n * 99_999_999n * BigInt(n) + 100_000_000n) / 200_000_000n;
      expect(BigInt(apportionment.count(0, n))).toBe(exact);
      expect(apportionment.count(0, n) + apportionment.count(1, n)).toBe(n);
    }
  });

  it("takes weights in any proportion and scale", () => {
    const tiny = new Apportionment([Number.MIN_VALUE, 1]);
    expect(tiny.at(2 ** 40).source).toBe(1);
    expect(tiny.count(0, 2 ** 50)).toBe(0);
    const scaled = [new Apportionment([7, 3]), new Apportionment([7 * 2 ** 60, 3 * 2 ** 60])];
    for (let i = 0; i < 500; i++) expect(scaled[0]?.at(i)).toEqual(scaled[1]?.at(i));
  });

  it("mixes 70% and 30% evenly", () => {
    const apportionment = new Apportionment([0.7, 0.3]);
    const dealt = Array.from({ length: 20 }, (_, i) => apportionment.at(i).source).join("");
    expect(dealt).toBe("01001000100100100010");
  });

  it.each([[[]], [[0]], [[1, -1]], [[Number.NaN]], [[Number.POSITIVE_INFINITY, 1]]])(
    "refuses the weights %j",
    (weights) => {
      expect(() => new Apportionment(weights as number[])).toThrow(ArgumentError);
    },
  );

  it("refuses positions that are not whole or not exact", () => {
    for (const position of [-1, 0.5, 2 ** 53, Number.NaN]) {
      expect(() => new Apportionment([1, 2]).at(position)).toThrow(ArgumentError);
    }
    expect(() => new Apportionment([1]).count(1, 5)).toThrow(ArgumentError);
  });
});
