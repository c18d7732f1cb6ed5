import type { Tokenizer } from "../data/tokenizer.js";
import type { ScoredToken } from "../generate/score.js";

/** The log-probability of a token that the model holds impossible; JSON has no infinity. */
const impossible = -9999;

const finite = (logprob: number): number => Math.max(logprob, impossible);

/** `logprobs` of a completion. The lists have one entry for each token. */
export interface CompletionLogprobs {
  tokens: string[];
  token_logprobs: (number | null)[];
  top_logprobs: (Record<string, number> | null)[];
  text_offset: number[];
}

/** Tokens and log-probabilities as OpenAI's interface writes them. */
export class TokenTexts {
  readonly #tokenizer: Tokenizer;
  /** Tokens that were written before; as many as the vocabulary has at most. */
  readonly #known = new Map<number, { token: string; bytes: number[] }>();

  constructor(tokenizer: Tokenizer) {
    this.#tokenizer = tokenizer;
  }

  /** A token as text. Bytes that are no whole characters are written as `bytes:\xe2\x80`. */
  text(id: number): string {
    return this.#token(id).token;
  }

  #token(id: number): { token: string; bytes: number[] } {
    const known = this.#known.get(id);
    if (known) return known;
    const bytes = this.#tokenizer.tokenBytes(id);
    const made = { token: textOf(bytes), bytes: [...bytes] };
    this.#known.set(id, made);
    return made;
  }

  /**
   * `logprobs` of a completion's tokens.
   * @param offsets places of the tokens in the answer's text
   */
  ofCompletion(tokens: readonly ScoredToken[], offsets: TextOffsets): CompletionLogprobs {
    return {
      tokens: tokens.map(({ id }) => this.text(id)),
      token_logprobs: tokens.map(({ logprob }) => logprob && finite(logprob)),
      top_logprobs: tokens.map((token) => this.#likeliest(token)),
      text_offset: tokens.map(({ id }) => offsets.next(id)),
    };
  }

  /** `logprobs.content` of a chat's answer. */
  ofChat(tokens: readonly ScoredToken[]) {
    const entry = (id: number, logprob: number) => {
      const { token, bytes } = this.#token(id);
      return { token, logprob: finite(logprob), bytes };
    };
    return tokens.map(({ id, logprob, top = [] }) => ({
      ...entry(id, logprob ?? 0),
      top_logprobs: this.#chosen(top).map((one) => entry(one.id, one.logprob)),
    }));
  }

  /** The likeliest tokens by their texts, and the token itself; null for a text's first token. */
  #likeliest({ id, logprob, top = [] }: ScoredToken): Record<string, number> | null {
    if (logprob === null) return null;
    const all = new Map<string, number>();
    // Two ids may have one text, and the likelier comes first.
    for (const one of [...this.#chosen(top), { id, logprob }]) {
      const text = this.text(one.id);
      if (!all.has(text)) all.set(text, finite(one.logprob));
    }
    return Object.fromEntries(all);
  }

  /** Without the rows of a padded vocabulary, which are never chosen. */
  #chosen(top: readonly { id: number; logprob: number }[]) {
    return top.filter(({ id }) => id < this.#tokenizer.vocabSize);
  }
}

function textOf(bytes: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    const digits = [...bytes].map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`);
    return `bytes:${digits.join("")}`;
  }
}

/** Places of an answer's tokens in its text, in characters. */
export class TextOffsets {
  readonly #decoder: { push(id: number): string };
  #length = 0;

  /** @param before ids before the text's first token */
  constructor(tokenizer: Tokenizer, before: readonly number[]) {
    const decoder = tokenizer.decodeStream();
    decoder.pushAll(before);
    this.#decoder = decoder;
  }

  /** The place of the next token. */
  next(id: number): number {
    const place = this.#length;
    this.#length += [...this.#decoder.push(id)].length;
    return place;
  }
}
