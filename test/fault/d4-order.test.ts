// docs/faults.md, row D4: the global sequence does not depend on the number of ranks, and every
// window comes once per epoch, at the size of TinyLlama's data. A billion windows are too many to
// enumerate. The permutation is a bijection by construction (`indexOf` undoes each step), and sizes
// up to some millions are enumerated.
import { describe, expect, it } from "vitest";
import { Apportionment } from "../../lib/data/apportion.js";
import { positionsForStep } from "../../lib/data/loader.js";
import { Permutation } from "../../lib/data/sampler.js";

const epochs = 3;
/** Windows of three sources, a billion in all, and their weights. */
const sizes = [620_000_000, 310_000_000, 70_000_003];
const weights = [0.62, 0.31, 0.07];
const total = sizes.reduce((a, b) => a + b);
const seed = 3407;

function random(state: number): () => number {
  let value = state;
  return () => {
    value = (Math.imul(value, 1664525) + 1013904223) >>> 0;
    return value / 2 ** 32;
  };
}

/** The window at a global position, as a mixture finds it. */
function place(mix: Apportionment, orders: Permutation[][], position: number) {
  const { source, ordinal } = mix.at(position);
  const size = sizes[source] as number;
  const epoch = Math.floor(ordinal / size);
  return { source, epoch, window: orders[source]?.[epoch]?.at(ordinal - epoch * size) };
}

const orders = sizes.map((size, source) =>
  Array.from({ length: epochs + 1 }, (_, epoch) => new Permutation(size, seed, source + 1, epoch)),
);

describe("D4 three epochs over a billion windows", () => {
  it("visit every window of every source once: the permutation has an inverse", () => {
    for (const [source, size] of sizes.entries()) {
      for (let epoch = 0; epoch < epochs; epoch++) {
        const order = orders[source]?.[epoch] as Permutation;
        const next = random(source * 10 + epoch);
        for (let sample = 0; sample < 20_000; sample++) {
          const index = sample < 1000 ? sample : Math.floor(next() * size);
          const window = order.at(index);
          expect(window >= 0 && window < size).toBe(true);
          if (order.indexOf(window) !== index) {
            throw new Error(
              `source ${source}, epoch ${epoch}: ${window} is at ${order.indexOf(window)}, not ${index}`,
            );
          }
          // The reverse direction: every window has a position.
          const other = Math.floor(next() * size);
          if (order.at(order.indexOf(other)) !== other) throw new Error(`${other} has no place`);
        }
      }
    }
  });

  it("are enumerated whole up to millions, with sums that only a permutation has", () => {
    for (const size of [1, 2, 3, 999, 1024, 65_537, 3_000_001]) {
      for (let epoch = 0; epoch < (size > 1e6 ? 2 : epochs); epoch++) {
        const order = new Permutation(size, seed, 7, epoch);
        const seen = new Uint8Array(size);
        for (let index = 0; index < size; index++) {
          const window = order.at(index);
          if (seen[window] !== 0) throw new Error(`${window} twice among ${size}`);
          seen[window] = 1;
        }
        expect(seen.indexOf(0)).toBe(-1);
      }
    }
  });

  it("differ in order from epoch to epoch", () => {
    for (const [source, size] of sizes.entries()) {
      const [one, two] = orders[source] as [Permutation, Permutation];
      let same = 0;
      for (let index = 0; index < 50_000; index++) same += one.at(index) === two.at(index) ? 1 : 0;
      // The number expected by chance is 50,000 / size.
      expect(same, `source of ${size}`).toBeLessThanOrEqual(3);
    }
  });

  it("keep the proportions in every prefix, exactly and without a gap between a source's windows", () => {
    const mix = new Apportionment(weights);
    const next = random(5);
    const last = new Map<number, number>();
    const checkStretch = (from: number, length: number) => {
      last.clear();
      for (let position = from; position < from + length; position++) {
        const { source, ordinal } = mix.at(position);
        if (last.has(source)) expect(ordinal).toBe((last.get(source) as number) + 1);
        last.set(source, ordinal);
      }
    };
    checkStretch(0, 5000);
    for (let sample = 0; sample < 3000; sample++) {
      const prefix = Math.floor(next() * epochs * total);
      const counts = weights.map((_, source) => mix.count(source, prefix));
      expect(counts.reduce((a, b) => a + b)).toBe(prefix);
      for (const [source, count] of counts.entries()) {
        const error = Math.abs(count - (weights[source] as number) * prefix);
        expect(error).toBeLessThanOrEqual(mix.bound + 1e-5);
      }
    }
    for (let stretch = 0; stretch < 20; stretch++)
      checkStretch(Math.floor(next() * epochs * total), 100);
  });

  it("are the same sequence for 1, 16 and 512 ranks, also when their number changes midway", () => {
    const mix = new Apportionment(weights);
    const microBatch = 8;
    // A step takes one range. The windows of all ranks, in order, are this range without a gap.
    let position = 0;
    const phases = [
      { worldSize: 1, accumulation: 512 },
      { worldSize: 16, accumulation: 32 },
      { worldSize: 512, accumulation: 1 },
      { worldSize: 16, accumulation: 5 },
      { worldSize: 1, accumulation: 3 },
    ];
    for (const far of [0, total - 2048, 2 * total + 12_345]) {
      position = far;
      for (const { worldSize, accumulation } of phases) {
        const windows = worldSize * microBatch * accumulation;
        const seen: number[] = [];
        for (let rank = 0; rank < worldSize; rank++) {
          for (let micro = 0; micro < accumulation; micro++) {
            const { first, count } = positionsForStep(micro, {
              batchSize: microBatch,
              rank,
              worldSize,
              startPosition: position,
            });
            expect(first).toBe(position + (micro * worldSize + rank) * microBatch);
            for (let row = 0; row < count; row++) seen.push(first + row);
          }
        }
        seen.sort((a, b) => a - b);
        expect(seen.length).toBe(windows);
        expect(seen[0]).toBe(position);
        expect(seen.every((value, index) => value === position + index)).toBe(true);
        // No window comes twice in the step.
        const names = seen.map((at) => Object.values(place(mix, orders, at)).join());
        expect(new Set(names).size).toBe(windows);
        position += windows;
      }
    }
  });
});
