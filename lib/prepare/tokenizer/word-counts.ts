/** Limits of the words that are held at once. */
export interface WordLimits {
  /** Different words. */
  words: number;
  /** UTF-16 units of all different words. */
  units: number;
}

/** About 600 MB with what the merges need. */
export const usualWordLimits: WordLimits = { words: 2 ** 22, units: 2 ** 26 };

/**
 * Counts words. The words lie one after another in one array, since strings that are parts of a text
 * would keep the whole text alive. Where the words exceed the limits, the rarest are dropped until
 * half is left, so that memory does not grow with the text.
 */
export class WordCounts {
  readonly #limits: WordLimits;
  #units = new Uint16Array(2 ** 16);
  /** Start of each word in `#units`, and behind the last word the end. */
  #starts = new Uint32Array(2 ** 12);
  #counts = new Float64Array(2 ** 12);
  #size = 0;
  /** Open addressing: number of a word and 1, or 0. */
  #table = new Uint32Array(2 ** 13);
  #dropped = 0;

  constructor(limits: WordLimits = usualWordLimits) {
    this.#limits = limits;
  }

  /** Number of different words. */
  get size(): number {
    return this.#size;
  }

  /** Largest count of a word that was dropped to bound the memory; 0 if none was. */
  get dropped(): number {
    return this.#dropped;
  }

  /** Adds one occurrence of the word that is the text's part from `start` to `end`. */
  add(text: string, start: number, end: number): void {
    const mask = this.#table.length - 1;
    let at = hashOf(text, start, end) & mask;
    for (; ; at = (at + 1) & mask) {
      const entry = this.#table[at] as number;
      if (entry === 0) break;
      if (!this.#equals(entry - 1, text, start, end)) continue;
      (this.#counts[entry - 1] as number) += 1;
      return;
    }
    this.#table[at] = this.#append(text, start, end, 1) + 1;
    this.#keepRoom();
  }

  /** The words with their counts, in the order of their first occurrence. */
  *entries(): Generator<[word: string, count: number]> {
    for (let word = 0; word < this.#size; word++) {
      yield [this.#word(word), this.#counts[word] as number];
    }
  }

  #word(word: number): string {
    const [start, end] = [this.#starts[word] as number, this.#starts[word + 1] as number];
    let text = "";
    for (let from = start; from < end; from += 4096) {
      const units = this.#units.subarray(from, Math.min(from + 4096, end));
      text += String.fromCharCode(...units);
    }
    return text;
  }

  #equals(word: number, text: string, start: number, end: number): boolean {
    const from = this.#starts[word] as number;
    if ((this.#starts[word + 1] as number) - from !== end - start) return false;
    for (let at = start; at < end; at++) {
      if (this.#units[from + at - start] !== text.charCodeAt(at)) return false;
    }
    return true;
  }

  #append(text: string, start: number, end: number, count: number): number {
    const word = this.#size++;
    const from = this.#starts[word] as number;
    const to = from + end - start;
    if (to > this.#units.length) {
      const grown = new Uint16Array(Math.max(to, 2 * this.#units.length));
      grown.set(this.#units);
      this.#units = grown;
    }
    for (let at = start; at < end; at++) this.#units[from + at - start] = text.charCodeAt(at);
    if (word + 2 > this.#counts.length) {
      const [starts, counts] = [this.#starts, this.#counts];
      this.#starts = new Uint32Array(2 * starts.length);
      this.#starts.set(starts);
      this.#counts = new Float64Array(2 * counts.length);
      this.#counts.set(counts);
    }
    this.#starts[word + 1] = to;
    this.#counts[word] = count;
    return word;
  }

  #keepRoom(): void {
    const units = this.#starts[this.#size] as number;
    if (this.#size > this.#limits.words || units > this.#limits.units) this.#dropRarest();
    else if (2 * this.#size > this.#table.length) this.#rebuildTable(2 * this.#table.length);
  }

  /** Drops the words that occurred once, then twice and so on, until half of the room is free. */
  #dropRarest(): void {
    do {
      this.#dropped++;
      let kept = 0;
      for (let word = 0; word < this.#size; word++) {
        const count = this.#counts[word] as number;
        if (count <= this.#dropped) continue;
        const [from, end] = [this.#starts[word] as number, this.#starts[word + 1] as number];
        const to = this.#starts[kept] as number;
        this.#units.copyWithin(to, from, end);
        this.#counts[kept] = count;
        this.#starts[++kept] = to + end - from;
      }
      this.#size = kept;
    } while (
      2 * this.#size > this.#limits.words ||
      2 * (this.#starts[this.#size] as number) > this.#limits.units
    );
    this.#rebuildTable(this.#table.length);
  }

  #rebuildTable(length: number): void {
    this.#table = new Uint32Array(length);
    const mask = length - 1;
    for (let word = 0; word < this.#size; word++) {
      const text = this.#word(word);
      let at = hashOf(text, 0, text.length) & mask;
      while (this.#table[at] !== 0) at = (at + 1) & mask;
      this.#table[at] = word + 1;
    }
  }
}

/** FNV-1a over the units, with the upper bits mixed into the lower ones. */
function hashOf(text: string, start: number, end: number): number {
  let hash = 0x811c9dc5;
  for (let at = start; at < end; at++) hash = Math.imul(hash ^ text.charCodeAt(at), 0x01000193);
  return (hash ^ (hash >>> 15)) >>> 0;
}
