import type { RowSampling } from "../ops/index.js";

/** A token that the model chose. */
export interface ChosenToken {
  id: number;
  /** Log-probability in nats under the model's own distribution. */
  logprob: number;
  /** The likeliest tokens and their log-probabilities, if they were asked for. */
  top?: readonly { id: number; logprob: number }[];
}

/** Why an answer ended: an end token or stop text, or its length. */
export type FinishReason = "stop" | "length";

/** Settings of one answer, checked. */
export interface SequenceSettings {
  maxTokens: number;
  /** Ids after which the answer ends; they are not part of it. */
  ends: ReadonlySet<number>;
  /** Number of the answer's first draw, for an answer that goes on with another one. */
  firstDraw?: number;
  sampling: Omit<RowSampling, "offset" | "counts" | "bias">;
  /** Dense additions to the logits, or null. -Infinity bans an id. */
  bias: Float32Array | null;
  /** How many of the likeliest tokens are wanted beside each chosen one. */
  top: number;
}

/** Hears of an answer's tokens and of its end. */
export interface SequenceListener {
  /** @returns whether the answer goes on */
  onToken(token: ChosenToken): boolean;
  onEnd(reason: FinishReason): void;
  onError(error: unknown): void;
}

/**
 * One text that the engine continues: its tokens, the pages of its keys and values, and the work
 * that is on its way. The newest token may be known only to the device, in the results of the step
 * before.
 */
export class Sequence {
  readonly settings: SequenceSettings;
  readonly listener: SequenceListener;
  /** Prompt and answer, as far as this process knows them. */
  readonly tokens: number[];
  readonly promptLength: number;
  /** Tokens whose keys and values have been enqueued. */
  computed = 0;
  /** The newest token's row in the results of a running step; null if `tokens` has the token. */
  pending: { readonly row: number } | null = null;
  pages: number[] = [];
  /** Pages whose contents the pool has been told. */
  remembered = 0;
  /** Row of the tables of counts and biases; null without penalties and biases. */
  slot: number | null = null;
  done = false;

  constructor(prompt: readonly number[], settings: SequenceSettings, listener: SequenceListener) {
    this.tokens = [...prompt];
    this.promptLength = prompt.length;
    this.settings = settings;
    this.listener = listener;
  }

  /** Tokens of prompt and answer, the pending one included. */
  get length(): number {
    return this.tokens.length + (this.pending === null ? 0 : 1);
  }

  /** Number of tokens of the answer that have been drawn; it numbers the next draw. */
  get drawn(): number {
    return this.length - this.promptLength;
  }

  get usesPenalties(): boolean {
    const { repetitionPenalty, presencePenalty, frequencyPenalty } = this.settings.sampling;
    return (
      (repetitionPenalty ?? 1) !== 1 ||
      (presencePenalty ?? 0) !== 0 ||
      (frequencyPenalty ?? 0) !== 0
    );
  }

  /** Takes a token that the model chose. */
  accept(token: ChosenToken): void {
    if (this.done) return;
    const { maxTokens } = this.settings;
    const ends = this.settings.ends.has(token.id);
    if (!ends) this.tokens.push(token.id);
    if (ends || !this.listener.onToken(token)) this.finish("stop");
    else if (this.tokens.length - this.promptLength >= maxTokens) this.finish("length");
  }

  finish(reason: FinishReason): void {
    if (this.done) return;
    this.done = true;
    this.listener.onEnd(reason);
  }

  fail(error: unknown): void {
    if (this.done) return;
    this.done = true;
    this.listener.onError(error);
  }
}
