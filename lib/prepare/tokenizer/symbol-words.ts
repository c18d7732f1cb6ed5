/** Words as ids of their symbols, one after another in one array, with the words' counts. */
export class SymbolWords {
  #symbols = new Int32Array(2 ** 16);
  /** Start of each word in `#symbols`, and behind the last word the end. */
  #starts = new Float64Array(2 ** 12);
  #lengths = new Int32Array(2 ** 12);
  #counts = new Float64Array(2 ** 12);
  #size = 0;

  /** Number of words. */
  get size(): number {
    return this.#size;
  }

  count(word: number): number {
    return this.#counts[word] as number;
  }

  /** The symbols of a word. A merge may change them and shorten the word. */
  symbols(word: number): Int32Array {
    const start = this.#starts[word] as number;
    return this.#symbols.subarray(start, start + (this.#lengths[word] as number));
  }

  shorten(word: number, length: number): void {
    this.#lengths[word] = length;
  }

  /** Adds a word. One of a single symbol has no pair and is left out. */
  add(symbols: readonly number[], count: number): void {
    if (symbols.length < 2) return;
    const word = this.#size++;
    const start = this.#starts[word] as number;
    const end = start + symbols.length;
    if (end > this.#symbols.length) {
      const grown = new Int32Array(Math.max(end, 2 * this.#symbols.length));
      grown.set(this.#symbols);
      this.#symbols = grown;
    }
    this.#symbols.set(symbols, start);
    if (word + 2 > this.#counts.length) this.#grow();
    this.#starts[word + 1] = end;
    this.#lengths[word] = symbols.length;
    this.#counts[word] = count;
  }

  #grow(): void {
    const length = 2 * this.#counts.length;
    const [starts, lengths, counts] = [this.#starts, this.#lengths, this.#counts];
    this.#starts = new Float64Array(length);
    this.#starts.set(starts);
    this.#lengths = new Int32Array(length);
    this.#lengths.set(lengths);
    this.#counts = new Float64Array(length);
    this.#counts.set(counts);
  }
}
