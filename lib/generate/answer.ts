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
  readonly #waiting = new Map<number, WaitingPart>();
  readonly #partMs: number;
  #error: { reason: unknown } | null = null;
  #open: number;
  #wake: (() => void) | null = null;
  /** When each answer's last part was taken. */
  readonly #taken = new Map<number, number>();

  /**
   * @param answers number of answers that the reader waits for
   * @param partMs shortest time between two parts of an answer, unless all have ended
   */
  constructor(answers: number, partMs = 0) {
    this.#open = answers;
    this.#partMs = partMs;
  }

  /** Whether all answers have ended, or one has failed. */
  get ended(): boolean {
    return this.#open === 0 || this.#error !== null;
  }

  push({ index, text, tokens, finishReason }: AnswerPart): void {
    const waiting = this.#waiting.get(index);
    if (waiting) {
      waiting.text += text;
      waiting.tokens.push(...tokens);
      waiting.finishReason = finishReason;
    } else {
      this.#waiting.set(index, { index, text, tokens: [...tokens], finishReason });
    }
    if (finishReason !== null) this.#open--;
    // A reader that waits for time wakes by itself, or at the end.
    if (!waiting || this.ended) this.#wake?.();
  }

  fail(reason: unknown): void {
    this.#error ??= { reason };
    this.#wake?.();
  }

  /** The next part; null when all answers have ended. @throws the engine's error */
  async next(): Promise<AnswerPart | null> {
    for (;;) {
      const [part] = this.#waiting.values();
      const waitMs = part && !this.ended ? this.#waitMs(part.index) : 0;
      if (part && waitMs <= 0) {
        this.#waiting.delete(part.index);
        if (this.#partMs > 0) this.#taken.set(part.index, performance.now());
        return part;
      }
      if (this.#error) throw this.#error.reason;
      if (this.#open === 0) return null;
      await this.#pushed(waitMs);
    }
  }

  /** Time until an answer's next part may be taken. */
  #waitMs(index: number): number {
    const last = this.#taken.get(index);
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
      queue.push({ index, text: text.push(token.id), tokens: [token], finishReason: null });
      return !text.stopped;
    },
    onEnd: (finishReason) => queue.push({ index, text: text.end(), tokens: [], finishReason }),
    onError: (error) => queue.fail(error),
  };
}

/** A whole answer. */
export interface CompleteAnswer {
  text: string;
  tokens: readonly ChosenToken[];
  finishReason: FinishReason;
}
