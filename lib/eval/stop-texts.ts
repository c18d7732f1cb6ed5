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
 * texts. Other end tokens of the model end an answer by themselves, as in the generation of Hugging
 * Face.
 */
export class StopTexts {
  readonly #tokenizer: Tokenizer;
  readonly #stops: readonly StopText[];
  readonly #ends: ReadonlySet<number>;

  private constructor(tokenizer: Tokenizer, stops: readonly StopText[], ends: ReadonlySet<number>) {
    this.#tokenizer = tokenizer;
    this.#stops = stops;
    this.#ends = ends;
  }

  /** @param endTokens end tokens beside the tokenizer's. Default: none */
  static async of(
    tokenizer: Tokenizer,
    until: readonly string[],
    endTokens: readonly number[] = [],
  ): Promise<StopTexts> {
    const eos = tokenizer.decode([tokenizer.eosId], { specialTokens: "keep" });
    const texts = (until.includes(eos) ? until : [...until, eos]).filter((text) => text !== "");
    const encoded = await encode(tokenizer, texts, false);
    const stops = texts.map((text, i) => ({
      text,
      window: (encoded[i] as Int32Array).length + 2,
    }));
    return new StopTexts(tokenizer, stops, new Set([tokenizer.eosId, ...endTokens]));
  }

  /** Whether a token ends an answer by itself. */
  isEnd(id: number): boolean {
    return this.#ends.has(id);
  }

  /**
   * Answers that end with their newest token.
   * @param answers tokens of each answer so far, at least one
   * @returns one entry for each answer
   */
  async reachedBy(answers: readonly (readonly number[])[]): Promise<boolean[]> {
    const reached = answers.map((tokens) => this.isEnd(tokens.at(-1) as number));
    for (const window of new Set(this.#stops.map((stop) => stop.window))) {
      const newest = answers.map((tokens) => tokens.slice(-window));
      const texts = await this.#tokenizer.decodeBatch(newest, { specialTokens: "keep" });
      for (const stop of this.#stops) {
        if (stop.window !== window) continue;
        for (const [i, text] of texts.entries()) reached[i] ||= text.includes(stop.text);
      }
    }
    return reached;
  }

  /** The answers' texts before the stop texts, which are cut one after the other, in their order. */
  async textsOf(answers: readonly (readonly number[])[]): Promise<string[]> {
    const texts = await this.#tokenizer.decodeBatch(answers);
    return texts.map((text) =>
      this.#stops.reduce((kept, stop) => kept.split(stop.text, 1)[0] as string, text),
    );
  }
}
