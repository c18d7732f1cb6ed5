/** Random shapes for property tests. */
import fc from "fast-check";

const size = fc.oneof(
  { weight: 5, arbitrary: fc.integer({ min: 1, max: 5 }) },
  fc.constantFrom(15, 16, 17, 33),
);

/** A shape of up to `maxRank` axes and at most about a thousand elements. */
export const shapeOf = (maxRank: number, minRank = 0) =>
  fc
    .array(size, { minLength: minRank, maxLength: maxRank })
    .filter((shape) => shape.reduce((product, n) => product * n, 1) <= 1200);

/** Two shapes that broadcast: parts of one shape, with some sizes made 1 and leading axes left out. */
export const broadcastPair = fc
  .record({
    shape: shapeOf(5),
    onesA: fc.array(fc.boolean(), { minLength: 5, maxLength: 5 }),
    onesB: fc.array(fc.boolean(), { minLength: 5, maxLength: 5 }),
    dropA: fc.nat(2),
    dropB: fc.nat(2),
  })
  .map(({ shape, onesA, onesB, dropA, dropB }) => ({
    a: shape.map((n, axis) => (onesA[axis] ? 1 : n)).slice(dropA),
    b: shape.map((n, axis) => (onesB[axis] ? 1 : n)).slice(dropB),
  }));
