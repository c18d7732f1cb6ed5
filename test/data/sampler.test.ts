import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ArgumentError } from "../../lib/core/errors.js";
import { Permutation } from "../../lib/data/sampler.js";

const order = (size: number, seed: number, source: number, epoch: number): number[] => {
  const permutation = new Permutation(size, seed, source, epoch);
  return Array.from({ length: size }, (_, index) => permutation.at(index));
};

const seeds = fc.maxSafeNat();

describe("permutation of windows", () => {
  it("visits every window exactly once, at every size and seed", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 2000 }),
        seeds,
        seeds,
        seeds,
        (n, seed, source, epoch) => {
          const seen = new Uint8Array(n);
          for (const window of order(n, seed, source, epoch))
            seen[window] = (seen[window] as number) + 1;
          expect(seen.every((count) => count === 1)).toBe(true);
        },
      ),
      { numRuns: 100 },
    );
  });

  it.each([2 ** 40, 2 ** 40 - 1, 2 ** 32 + 1, 999_999_999_989])(
    "stays within range and repeats nothing at %d windows",
    (n) => {
      const permutation = new Permutation(n, 3407, 1, 2);
      const windows = new Set<number>();
      for (let i = 0; i < 20_000; i++) {
        const window = permutation.at(i < 10_000 ? i : n - 1 - (i - 10_000));
        expect(window).toBeGreaterThanOrEqual(0);
        expect(window).toBeLessThan(n);
        windows.add(window);
      }
      expect(windows.size).toBe(20_000);
      // The windows spread over the whole range: each of 16 parts has its share within five
      // standard deviations.
      const parts = new Array<number>(16).fill(0);
      for (const window of windows) {
        const part = Math.floor((window / n) * 16);
        parts[part] = (parts[part] as number) + 1;
      }
      const deviation = Math.sqrt(20_000 * (1 / 16) * (15 / 16));
      for (const count of parts) expect(Math.abs(count - 20_000 / 16)).toBeLessThan(5 * deviation);
    },
  );

  it("gives another order for another epoch, seed or source", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 30, max: 500 }),
        fc.nat(),
        fc.nat(),
        fc.nat(),
        (n, seed, source, epoch) => {
          const base = order(n, seed, source, epoch).join();
          expect(order(n, seed, source, epoch).join()).toBe(base);
          expect(order(n, seed, source, epoch + 1).join()).not.toBe(base);
          expect(order(n, seed, source + 1, epoch).join()).not.toBe(base);
          expect(order(n, seed + 1, source, epoch).join()).not.toBe(base);
          expect(order(n, seed + 2 ** 40, source, epoch).join()).not.toBe(base);
        },
      ),
    );
  });

  it("has the statistics of a random order", () => {
    const n = 997;
    let fixedPoints = 0;
    let neighbours = 0;
    const firstCounts = new Uint32Array(n);
    const epochs = 300;
    for (let epoch = 0; epoch < epochs; epoch++) {
      const windows = order(n, 1, 0, epoch);
      for (let i = 0; i < n; i++) {
        if (windows[i] === i) fixedPoints++;
        if (i > 0 && windows[i] === (windows[i - 1] as number) + 1) neighbours++;
      }
      const first = windows[0] as number;
      firstCounts[first] = (firstCounts[first] as number) + 1;
    }
    // Both are Poisson with mean about 1 per epoch in a random permutation.
    expect(Math.abs(fixedPoints - epochs)).toBeLessThan(5 * Math.sqrt(epochs));
    expect(Math.abs(neighbours - epochs)).toBeLessThan(5 * Math.sqrt(epochs));
    expect(Math.max(...firstCounts)).toBeLessThanOrEqual(6);
  });

  it("keeps the order it has always had", () => {
    // A change of these numbers reorders the data of every resumed run.
    expect(order(20, 3407, 0, 0)).toMatchInlineSnapshot(`
      [
        19,
        6,
        12,
        15,
        9,
        18,
        2,
        0,
        13,
        8,
        10,
        16,
        7,
        4,
        1,
        17,
        5,
        11,
        14,
        3,
      ]
    `);
    expect(new Permutation(2 ** 40, 3407, 5, 7).at(123_456_789_012)).toMatchInlineSnapshot(
      `92381255098`,
    );
  });

  it.each([
    [0, 0, 0, 0],
    [1.5, 0, 0, 0],
    [2 ** 40 + 1, 0, 0, 0],
    [5, -1, 0, 0],
    [5, 0, Number.NaN, 0],
    [5, 0, 0, 2 ** 53],
  ])("refuses size %d, seed %d, source %d, epoch %d", (size, seed, source, epoch) => {
    expect(() => new Permutation(size, seed, source, epoch)).toThrow(ArgumentError);
  });

  it("refuses an index outside the order", () => {
    const permutation = new Permutation(5, 0, 0, 0);
    for (const index of [-1, 5, 0.5, Number.NaN]) {
      expect(() => permutation.at(index)).toThrow(/expected an integer from 0 to 4 for index/);
    }
  });
});
