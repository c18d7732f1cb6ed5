import type { AnswerText } from "./answer-text.js";
import type { ChosenToken, FinishReason, SequenceListener } from "./sequence.js";

/** A piece of an answer. */
export interface AnswerPart {
  /** Which of the `n` answers it belongs to, from 0. */
  index: number;
  /** Text that has become final; may be empty. */
  text: string;
  /** The tokens that this part brings. Their text may come with a later part. */
  tokens: readonly ChosenToken[];
  /** Why the answer has ended, in its last part; null before. */
  finishReason: FinishReason | null;
}

/** A part that its reader has not taken yet. */
interface WaitingPart extends AnswerPart {
  tokens: ChosenToken[];
}

/**
 * Parts of answers on their way from the engine to one reader. What comes before the reader asks
 * is joined, so that a slow reader gets one part of each answer instead of many.
 */
export class AnswerQueue {
  /** By the answer's index; undefined where nothing waits. */
  readonly #waiting: (WaitingPart | undefined)[];
  /** Indices of the answers with a part, in the order of its first token. */
  readonly #order: number[] = [];
  readonly #partMs: number;
  #error: { reason: unknown } | null = null;
  #open: number;
  #wake: (() => void) | null;
  /** When each answer's last part was taken. */
  readonly #taken: (number | undefined)[];

  /**
   * @param answers number of answers that the reader waits for
   * @param partMs shortest time between two parts of an answer, unless all have ended
   * @param onReady called when a reader that uses `take` has something to take: a part where none
   *   was, the end or a failure
   */
  constructor(answers: number, partMs = 0, onReady: (() => void) | null = null) {
    this.#open = answers;
    this.#partMs = partMs;
    this.#wake = onReady;
    this.#waiting = Array.from({ length: answers }, () => undefined);
    this.#taken = Array.from({ length: answers }, () => undefined);
  }

  /** Whether all answers have ended, or one has failed. */
  get ended(): boolean {
    return this.#open === 0 || this.#error !== null;
  }

  /** Why the answers have failed; null if they have not. */
  get failure(): { readonly reason: unknown } | null {
    return this.#error;
  }

  /**
   * Adds to an answer.
   * @param token null for text and an end without a token
   */
  push(
    index: number,
    text: string,
    token: ChosenToken | null,
    finishReason: FinishReason | null,
  ): void {
    const waiting = this.#waiting[index];
    if (waiting) {
      waiting.text += text;
      if (token) waiting.tokens.push(token);
      waiting.finishReason = finishReason;
    } else {
      this.#waiting[index] = { index, text, tokens: token ? [token] : [], finishReason };
      this.#order.push(index);
    }
    if (finishReason !== null) this.#open--;
    // A reader that waits for time wakes by itself, or at the end.
    if (!waiting || this.ended) this.#wake?.();
  }

  fail(reason: unknown): void {
    this.#error ??= { reason };
    this.#wake?.();
  }

  /** The part that has waited longest; null if none waits. */
  take(): AnswerPart | null {
    const index = this.#order.shift();
    if (index === undefined) return null;
    const part = this.#waiting[index] as WaitingPart;
    this.#waiting[index] = undefined;
    return part;
  }

  /** The next part; null when all answers have ended. @throws the engine's error */
  async next(): Promise<AnswerPart | null> {
    for (;;) {
      const [index] = this.#order;
      const waitMs = index !== undefined && !this.ended ? this.#waitMs(index) : 0;
      if (index !== undefined && waitMs <= 0) {
        if (this.#partMs > 0) this.#taken[index] = performance.now();
        return this.take();
      }
      if (this.#error) throw this.#error.reason;
      if (this.#open === 0) return null;
      await this.#pushed(waitMs);
    }
  }

  /** Time until an answer's next part may be taken. */
  #waitMs(index: number): number {
    const last = this.#taken[index];
    return last === undefined ? 0 : last + this.#partMs - performance.now();
  }

  /** Waits for a part, an error or the end; with a time, for that long at most. */
  async #pushed(limitMs: number): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
      if (limitMs > 0) timer = setTimeout(resolve, Math.ceil(limitMs));
    });
    clearTimeout(timer);
    this.#wake = null;
  }
}

/** Turns the tokens of one answer into parts. */
export function listen(queue: AnswerQueue, index: number, text: AnswerText): SequenceListener {
  return {
    onToken: (token) => {
      queue.push(index, text.push(token.id), token, null);
      return !text.stopped;
    },
    onEnd: (finishReason) => queue.push(index, text.end(), null, finishReason),
    onError: (error) => queue.fail(error),
  };
}

/** A whole answer. */
export interface CompleteAnswer {
  text: string;
  tokens: readonly ChosenToken[];
  finishReason: FinishReason;
}
