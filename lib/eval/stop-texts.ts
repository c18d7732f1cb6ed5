import type { Tokenizer } from "../data/tokenizer.js";
import { encode } from "./token-requests.js";

/** A text that ends an answer, and the number of newest tokens that may hold it. */
interface StopText {
  readonly text: string;
  readonly window: number;
}

/**
 * Texts that end an answer, as lm-evaluation-harness 0.4.13 finds and cuts them with a batch of one.
 * After each token it looks for a text among the newest tokens, two more than the text has by
 * itself, in which special tokens have their names. The name of the end-of-text token is one of the
 * texts.
 */
export class StopTexts {
  readonly #tokenizer: Tokenizer;
  readonly #stops: readonly StopText[];

  private constructor(tokenizer: Tokenizer, stops: readonly StopText[]) {
    this.#tokenizer = tokenizer;
    this.#stops = stops;
  }

  static async of(tokenizer: Tokenizer, until: readonly string[]): Promise<StopTexts> {
    const eos = tokenizer.decode([tokenizer.eosId], { specialTokens: "keep" });
    const texts = (until.includes(eos) ? until : [...until, eos]).filter((text) => text !== "");
    const encoded = await encode(tokenizer, texts, false);
    const stops = texts.map((text, i) => ({
      text,
      window: (encoded[i] as Int32Array).length + 2,
    }));
    return new StopTexts(tokenizer, stops);
  }

  /** Whether an answer ends with its newest token. */
  reachedBy(tokens: readonly number[]): boolean {
    if (tokens.at(-1) === this.#tokenizer.eosId) return true;
    const decoded = new Map<number, string>();
    return this.#stops.some(({ text, window }) => {
      let newest = decoded.get(window);
      if (newest === undefined) {
        newest = this.#tokenizer.decode(tokens.slice(-window), { specialTokens: "keep" });
        decoded.set(window, newest);
      }
      return newest.includes(text);
    });
  }

  /** The answer's text before the stop texts. They are cut one after the other, in their order. */
  textOf(tokens: readonly number[]): string {
    const whole = this.#tokenizer.decode(tokens);
    return this.#stops.reduce((kept, { text }) => kept.split(text, 1)[0] as string, whole);
  }
}
