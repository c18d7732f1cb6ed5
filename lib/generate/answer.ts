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

/** Parts of answers on their way from the engine to one reader. */
export class AnswerQueue {
  readonly #parts: AnswerPart[] = [];
  #error: { reason: unknown } | null = null;
  #open: number;
  #wake: (() => void) | null = null;

  /** @param answers number of answers that the reader waits for */
  constructor(answers: number) {
    this.#open = answers;
  }

  /** Whether all answers have ended, or one has failed. */
  get ended(): boolean {
    return this.#open === 0 || this.#error !== null;
  }

  push(part: AnswerPart): void {
    const last = this.#parts.at(-1);
    // A slow reader gets one part instead of many.
    if (last && last.index === part.index && last.finishReason === null) {
      const { text, tokens } = last;
      this.#parts[this.#parts.length - 1] = {
        ...part,
        text: text + part.text,
        tokens: [...tokens, ...part.tokens],
      };
    } else {
      this.#parts.push(part);
    }
    if (part.finishReason !== null) this.#open--;
    this.#wake?.();
  }

  fail(reason: unknown): void {
    this.#error ??= { reason };
    this.#wake?.();
  }

  /** The next part; null when all answers have ended. @throws the engine's error */
  async next(): Promise<AnswerPart | null> {
    for (;;) {
      const part = this.#parts.shift();
      if (part) return part;
      if (this.#error) throw this.#error.reason;
      if (this.#open === 0) return null;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      this.#wake = null;
    }
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
