import { checkInteger } from "../core/check-values.js";

/** Largest number of windows that a source may have. */
export const maxWindows = 2 ** 40;

const rounds = 8;

/** Mixes 32 bits so that every input bit reaches every output bit (the finaliser of MurmurHash3). */
function mix(value: number): number {
  let h = value | 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/** Two 32-bit lanes into which numbers up to 2^53 are absorbed; each lane has its own constants. */
function roundKeys(numbers: readonly number[]): Uint32Array {
  let a = 0x9e3779b9;
  let b = 0x7f4a7c15;
  for (const number of numbers) {
    for (const word of [number % 2 ** 32, Math.floor(number / 2 ** 32)]) {
      a = mix(Math.imul(a, 0x01000193) ^ word);
      b = mix((Math.imul(b, 0x5bd1e995) + word + 0x6a09e667) | 0);
    }
  }
  const keys = new Uint32Array(rounds);
  for (let round = 0; round < rounds; round++) {
    keys[round] = mix((round % 2 === 0 ? a : b) + Math.imul(round + 1, 0x9e3779b9));
  }
  return keys;
}

/**
 * A keyed permutation of 0..n-1. The window at any place of an epoch is computed, so its order
 * needs no memory.
 *
 * An index x = left · b + right lives in the grid Z_a × Z_b with a = ceil(sqrt n), b = ceil(n / a).
 * A round adds a keyed hash of one half to the other half, modulo its size. Whatever the hash, the
 * round can be undone, so eight rounds are a bijection of the grid (a generalised Feistel network,
 * Black & Rogaway 2002). The grid exceeds n by less than a, so values rarely fall outside 0..n-1;
 * those that do are sent through again ("cycle walking"). All numbers stay below 2^53.
 */
export class Permutation {
  readonly size: number;
  readonly #rows: number;
  readonly #columns: number;
  readonly #keys: Uint32Array;

  /**
   * @param size    number of elements, at most 2^40
   * @param seed    seed of the run
   * @param source  index of the source in a mixture; sources of equal size get different orders
   * @param epoch   number of the pass; every pass has its own order
   */
  constructor(size: number, seed: number, source: number, epoch: number) {
    checkInteger("permutation", "size", size, { min: 1, max: maxWindows });
    checkInteger("permutation", "seed", seed, { min: 0 });
    checkInteger("permutation", "source", source, { min: 0 });
    checkInteger("permutation", "epoch", epoch, { min: 0 });
    this.size = size;
    this.#rows = Math.ceil(Math.sqrt(size));
    this.#columns = Math.ceil(size / this.#rows);
    this.#keys = roundKeys([seed, source, epoch]);
  }

  /** The element at `index` of the order. */
  at(index: number): number {
    checkInteger("permutation", "index", index, { min: 0, max: this.size - 1 });
    let value = index;
    do value = this.#walk(value);
    while (value >= this.size);
    return value;
  }

  /** Place of an element in the order: the inverse of `at`. */
  indexOf(element: number): number {
    checkInteger("permutation", "element", element, { min: 0, max: this.size - 1 });
    let value = element;
    do value = this.#walkBack(value);
    while (value >= this.size);
    return value;
  }

  /** Inverse of `#walk`, round by round. */
  #walkBack(value: number): number {
    const rows = this.#rows;
    const columns = this.#columns;
    let left = Math.floor(value / columns);
    let right = value - left * columns;
    for (let round = rounds - 2; round >= 0; round -= 2) {
      const [leftKey, rightKey] = [this.#keys[round] as number, this.#keys[round + 1] as number];
      right = (right + columns - (mix(left ^ rightKey) % columns)) % columns;
      left = (left + rows - (mix(right ^ leftKey) % rows)) % rows;
    }
    return left * columns + right;
  }

  #walk(value: number): number {
    const rows = this.#rows;
    const columns = this.#columns;
    const keys = this.#keys;
    let left = Math.floor(value / columns);
    let right = value - left * columns;
    for (let round = 0; round < rounds; round += 2) {
      left = (left + mix(right ^ (keys[round] as number))) % rows;
      right = (right + mix(left ^ (keys[round + 1] as number))) % columns;
    }
    return left * columns + right;
  }
}
