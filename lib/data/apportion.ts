import { describe } from "../core/check-values.js";
import { ArgumentError } from "../core/errors.js";

/** A node of the tree of splits. A leaf is a source; an inner node gives `share`, a fraction, to its left side. */
type Node =
  | { readonly source: number }
  | {
      readonly numerator: bigint;
      readonly denominator: bigint;
      readonly left: Node;
      readonly right: Node;
    };

/** Doubles as integers over one common power of two: no weight is rounded. */
function exactIntegers(weights: readonly number[]): bigint[] {
  const parts = weights.map((weight) => {
    const bits = new DataView(new ArrayBuffer(8));
    bits.setFloat64(0, weight);
    const word = bits.getBigUint64(0);
    const exponent = Number((word >> 52n) & 0x7ffn);
    const fraction = word & 0xfffffffffffffn;
    return exponent === 0
      ? { mantissa: fraction, exponent: 1 }
      : { mantissa: fraction | (1n << 52n), exponent };
  });
  const lowest = Math.min(...parts.map((part) => part.exponent));
  return parts.map((part) => part.mantissa << BigInt(part.exponent - lowest));
}

function gcd(a: bigint, b: bigint): bigint {
  while (b !== 0n) [a, b] = [b, a % b];
  return a;
}

/**
 * Deals the positions 0, 1, 2, … of one stream to k sources in proportion to weights, without
 * state. The source of position i, and the number of earlier positions of that source, follow
 * exactly from i alone, even at i = 10^15.
 *
 * Two sources: of the first n positions the first source has c(n) = floor(n·w + 1/2), the second n
 * - c(n). c rises by 0 or 1 as n rises by 1, because 0 < w < 1; position n goes to the first source
 * when it rises. Both counts differ from weight · n by at most 1/2, for every n.
 *
 * More sources: a balanced binary tree of such splits, in which every node splits the positions
 * dealt to it. A child's count differs by its share r of its parent's error, plus 1/2: at depth d
 * by at most (1 + r_d + r_d·r_(d-1) + …)/2 with d terms and every r < 1. The error is therefore at
 * most 1/2 for two sources, below 1 for three and four, below ceil(log2 k)/2 for k. `bound` is that
 * sum for the given weights.
 *
 * Weights are the exact rational numbers of their doubles, and products are formed in BigInt.
 * Rounding would make c rise by 2 somewhere once n·w no longer fits 53 bits, and two sources would
 * both claim a position.
 */
export class Apportionment {
  readonly size: number;
  /**
   * Upper bound on the difference between a source's count and weight · n, over all sources and n.
   */
  readonly bound: number;
  readonly #root: Node;
  readonly #paths: ReadonlyMap<number, readonly ("left" | "right")[]>;

  /** @param weights positive and finite; only their proportions matter */
  constructor(weights: readonly number[]) {
    if (weights.length === 0) throw new ArgumentError("[mixture] expected at least one source");
    for (const weight of weights) {
      if (typeof weight !== "number" || !Number.isFinite(weight) || weight <= 0) {
        throw new ArgumentError(
          `[mixture] expected positive, finite weights, got ${describe(weight)}`,
        );
      }
    }
    const integers = exactIntegers(weights);
    const paths = new Map<number, ("left" | "right")[]>();
    let bound = 0;
    const sum = (from: number, to: number): bigint =>
      integers.slice(from, to).reduce((total, weight) => total + weight, 0n);

    const build = (from: number, to: number, path: ("left" | "right")[], error: number): Node => {
      if (to - from === 1) {
        paths.set(from, path);
        bound = Math.max(bound, error);
        return { source: from };
      }
      const middle = from + Math.floor((to - from) / 2);
      const leftWeight = sum(from, middle);
      const weight = sum(from, to);
      const divisor = gcd(leftWeight, weight);
      const numerator = leftWeight / divisor;
      const denominator = weight / divisor;
      const share = Number((numerator * (1n << 64n)) / denominator) / 2 ** 64;
      return {
        numerator,
        denominator,
        left: build(from, middle, [...path, "left"], 0.5 + share * error),
        right: build(middle, to, [...path, "right"], 0.5 + (1 - share) * error),
      };
    };
    this.#root = build(0, weights.length, [], 0);
    this.#paths = paths;
    this.size = weights.length;
    this.bound = bound;
  }

  /** Number of positions among the first `length` that belong to `source`. */
  count(source: number, length: number): number {
    const path = this.#paths.get(source);
    if (path === undefined) {
      throw new ArgumentError(`[mixture] expected a source in 0..${this.size - 1}, got ${source}`);
    }
    let node = this.#root;
    let n = checkPosition(length);
    for (const side of path) {
      if ("source" in node) break;
      const left = leftCount(node, n);
      n = side === "left" ? left : n - left;
      node = node[side];
    }
    return Number(n);
  }

  /** The source of a position, and the number of earlier positions of that source. */
  at(position: number): { source: number; ordinal: number } {
    let node = this.#root;
    let n = checkPosition(position);
    while (!("source" in node)) {
      const left = leftCount(node, n);
      const goesLeft = leftCount(node, n + 1n) > left;
      n = goesLeft ? left : n - left;
      node = goesLeft ? node.left : node.right;
    }
    return { source: node.source, ordinal: Number(n) };
  }
}

/** floor(n · share + 1/2) */
function leftCount(node: { numerator: bigint; denominator: bigint }, n: bigint): bigint {
  return (2n * node.numerator * n + node.denominator) / (2n * node.denominator);
}

function checkPosition(position: number): bigint {
  if (!Number.isSafeInteger(position) || position < 0) {
    throw new ArgumentError(`[mixture] expected a position in 0..2^53-1, got ${String(position)}`);
  }
  return BigInt(position);
}
