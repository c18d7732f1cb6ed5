/** Numbers pairs of ids, and counts each. Ids are below 2^31. */
export class PairTable {
  #left = new Int32Array(2 ** 12);
  #right = new Int32Array(2 ** 12);
  #counts = new Float64Array(2 ** 12);
  #size = 0;
  /** Open addressing: number of a pair and 1, or 0. */
  #table = new Uint32Array(2 ** 13);

  /** Number of different pairs. */
  get size(): number {
    return this.#size;
  }

  left(pair: number): number {
    return this.#left[pair] as number;
  }

  right(pair: number): number {
    return this.#right[pair] as number;
  }

  count(pair: number): number {
    return this.#counts[pair] as number;
  }

  change(pair: number, amount: number): void {
    (this.#counts[pair] as number) += amount;
  }

  /** The number of a pair, which is new if the pair is. */
  numberOf(left: number, right: number): number {
    const mask = this.#table.length - 1;
    let at = hashOf(left, right) & mask;
    for (; ; at = (at + 1) & mask) {
      const entry = this.#table[at] as number;
      if (entry === 0) break;
      if (this.#left[entry - 1] === left && this.#right[entry - 1] === right) return entry - 1;
    }
    const pair = this.#size++;
    if (pair === this.#left.length) this.#grow();
    this.#left[pair] = left;
    this.#right[pair] = right;
    this.#table[at] = pair + 1;
    if (2 * this.#size > this.#table.length) this.#rebuildTable();
    return pair;
  }

  #grow(): void {
    const length = 2 * this.#left.length;
    const [left, right, counts] = [this.#left, this.#right, this.#counts];
    this.#left = new Int32Array(length);
    this.#left.set(left);
    this.#right = new Int32Array(length);
    this.#right.set(right);
    this.#counts = new Float64Array(length);
    this.#counts.set(counts);
  }

  #rebuildTable(): void {
    this.#table = new Uint32Array(2 * this.#table.length);
    const mask = this.#table.length - 1;
    for (let pair = 0; pair < this.#size; pair++) {
      let at = hashOf(this.left(pair), this.right(pair)) & mask;
      while (this.#table[at] !== 0) at = (at + 1) & mask;
      this.#table[at] = pair + 1;
    }
  }
}

function hashOf(left: number, right: number): number {
  const mixed = Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca6b);
  return (mixed ^ (mixed >>> 15)) >>> 0;
}
