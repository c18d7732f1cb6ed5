/**
 * Python's `random.Random`, bit for bit: the Mersenne Twister MT19937 with CPython's seeding and
 * its ways from words to numbers.
 * @see Matsumoto & Nishimura 1998, "Mersenne Twister"
 */
export class PythonRandom {
  readonly #state = new Uint32Array(624);
  #index = 624;

  /** @param seed an integer of at most 53 bits; its sign does not count */
  constructor(seed: number) {
    const size = Math.abs(seed);
    const high = Math.floor(size / 2 ** 32);
    this.#seedByArray(high > 0 ? [size >>> 0, high] : [size >>> 0]);
  }

  /** The next word of 32 random bits. */
  #word(): number {
    if (this.#index >= 624) this.#refill();
    let y = this.#state[this.#index++] as number;
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  /** A number from 0 to below 1, of 53 random bits. */
  random(): number {
    const high = this.#word() >>> 5;
    const low = this.#word() >>> 6;
    return (high * 67_108_864 + low) / 9_007_199_254_740_992;
  }

  /** An integer from 0 to below `count`, for a count of at most 2^31. */
  below(count: number): number {
    const bits = 32 - Math.clz32(count);
    for (;;) {
      const value = this.#word() >>> (32 - bits);
      if (value < count) return value;
    }
  }

  /** `count` different elements, in the order of `random.sample`. */
  sample<T>(population: readonly T[], count: number): T[] {
    const { length } = population;
    // CPython copies a small population, and remembers the chosen indices of a large one.
    const room = 21 + (count > 5 ? 4 ** Math.ceil(Math.log(count * 3) / Math.log(4)) : 0);
    if (length <= room) {
      const pool = [...population];
      return Array.from({ length: count }, (_, i) => {
        const index = this.below(length - i);
        const chosen = pool[index] as T;
        pool[index] = pool[length - i - 1] as T;
        return chosen;
      });
    }
    const chosen = new Set<number>();
    while (chosen.size < count) chosen.add(this.below(length));
    return [...chosen].map((index) => population[index] as T);
  }

  /** The elements in the order that `random.shuffle` gives them. */
  shuffled<T>(elements: readonly T[]): T[] {
    const order = [...elements];
    for (let i = order.length - 1; i > 0; i--) {
      const other = this.below(i + 1);
      [order[i], order[other]] = [order[other] as T, order[i] as T];
    }
    return order;
  }

  #seedByWord(seed: number): void {
    this.#state[0] = seed;
    for (let i = 1; i < 624; i++) {
      const before = this.#state[i - 1] as number;
      this.#state[i] = Math.imul(1_812_433_253, before ^ (before >>> 30)) + i;
    }
  }

  #seedByArray(key: readonly number[]): void {
    const state = this.#state;
    this.#seedByWord(19_650_218);
    let i = 1;
    let j = 0;
    const next = (): void => {
      if (++i < 624) return;
      state[0] = state[623] as number;
      i = 1;
    };
    const mixed = (factor: number): number => {
      const before = state[i - 1] as number;
      return (state[i] as number) ^ Math.imul(before ^ (before >>> 30), factor);
    };
    for (let k = Math.max(624, key.length); k > 0; k--) {
      state[i] = mixed(1_664_525) + (key[j] as number) + j;
      next();
      j = (j + 1) % key.length;
    }
    for (let k = 623; k > 0; k--) {
      state[i] = mixed(1_566_083_941) - i;
      next();
    }
    state[0] = 0x80000000;
  }

  #refill(): void {
    const state = this.#state;
    for (let i = 0; i < 624; i++) {
      const y =
        ((state[i] as number) & 0x80000000) | ((state[(i + 1) % 624] as number) & 0x7fffffff);
      const twist = y & 1 ? 0x9908b0df : 0;
      state[i] = (state[(i + 397) % 624] as number) ^ (y >>> 1) ^ twist;
    }
    this.#index = 0;
  }
}
