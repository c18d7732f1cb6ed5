/** Decodes ids as they arrive: `push` returns the text that has become final, `end` the rest. */
export interface TextDecoder {
  push(id: number): string;
  end(): string;
}

/**
 * The text of an answer as its tokens arrive. Text is given out only when it is final: a character
 * is whole, and no stop string has begun in it. A stop string may begin in one token and end in
 * another; it is not part of the text.
 */
export class AnswerText {
  readonly #decoder: TextDecoder;
  readonly #stop: readonly string[];
  /** Text that may be the beginning of a stop string. */
  #held = "";
  #stopped = false;

  /**
   * @param decoder a decoder of the whole text
   * @param prompt the ids before the answer. Prompt and answer decode as one text, because the
   *   space between two words belongs to the second word's token
   */
  constructor(decoder: TextDecoder, prompt: readonly number[], stop: readonly string[]) {
    this.#decoder = decoder;
    this.#stop = stop;
    for (const id of prompt) decoder.push(id);
  }

  /** Whether a stop string has come. No text follows it. */
  get stopped(): boolean {
    return this.#stopped;
  }

  /** Adds a token. @returns the text that has become final */
  push(id: number): string {
    return this.#take(this.#decoder.push(id));
  }

  /** Ends the answer. @returns the rest of the text */
  end(): string {
    if (this.#stopped) return "";
    const text = this.#take(this.#decoder.end());
    if (this.#stopped) return text;
    const rest = text + this.#held;
    this.#held = "";
    return rest;
  }

  #take(piece: string): string {
    if (this.#stopped) return "";
    if (this.#stop.length === 0) return piece;
    const text = this.#held + piece;
    const at = firstStop(text, this.#stop);
    if (at !== null) {
      this.#stopped = true;
      this.#held = "";
      return text.slice(0, at);
    }
    const kept = Math.max(0, ...this.#stop.map((stop) => begun(text, stop)));
    this.#held = kept > 0 ? text.slice(-kept) : "";
    return kept > 0 ? text.slice(0, -kept) : text;
  }
}

/**
 * Where the stop string that ends first begins; of several, the longest. So an answer's text does
 * not depend on the borders of its tokens.
 */
function firstStop(text: string, stop: readonly string[]): number | null {
  let first: { at: number; end: number } | null = null;
  for (const one of stop) {
    const at = text.indexOf(one);
    const end = at + one.length;
    if (at < 0) continue;
    if (!first || end < first.end || (end === first.end && at < first.at)) first = { at, end };
  }
  return first?.at ?? null;
}

/** How many characters at the end of a text are the beginning of `stop`. */
function begun(text: string, stop: string): number {
  for (let length = Math.min(text.length, stop.length - 1); length > 0; length--) {
    if (stop.startsWith(text.slice(-length))) return length;
  }
  return 0;
}
