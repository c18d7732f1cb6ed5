import type { PagePool } from "./page-pool.js";
import type { Sequence } from "./sequence.js";
import type { TokenSpan } from "./step-batch.js";

/** Bounds of one step. */
export interface StepLimits {
  /** Sequences that run at once. */
  maxBatch: number;
  /** Tokens of prompts that one step computes beside the sequences' newest tokens. */
  promptTokens: number;
}

/**
 * Chooses the tokens of each step. Sequences are served in the order of their arrival: each running
 * sequence computes its newest token, and prompts are computed in chunks beside them. When the
 * pages run out, the sequence that came last gives its pages back and waits; its tokens are
 * computed again later.
 */
export class Scheduler {
  readonly #pool: PagePool;
  readonly #limits: StepLimits;
  readonly #waiting: Sequence[] = [];
  #running: Sequence[] = [];
  /** Tokens whose keys and values were there already when their sequence began to run. */
  sharedTokens = 0;

  constructor(pool: PagePool, limits: StepLimits) {
    this.#pool = pool;
    this.#limits = limits;
  }

  get waiting(): number {
    return this.#waiting.length;
  }

  get running(): readonly Sequence[] {
    return this.#running;
  }

  add(sequence: Sequence): void {
    this.#waiting.push(sequence);
  }

  /** Every sequence that has not ended. */
  all(): readonly Sequence[] {
    return [...this.#running, ...this.#waiting];
  }

  /** The tokens of the next step; none if nothing can be computed now. */
  next(): TokenSpan[] {
    this.#dropDone();
    const spans: TokenSpan[] = [];
    let budget = this.#limits.promptTokens;
    // Preempted sequences leave the list while it is walked. Each removal makes a new list.
    const before = this.#running;
    for (const sequence of before) {
      if (this.#running !== before && !this.#running.includes(sequence)) continue;
      const span = this.#spanOf(sequence, budget);
      if (!span) continue;
      spans.push(span);
      if (span.to - span.from > 1) budget -= span.to - span.from;
    }
    while (this.#running.length < this.#limits.maxBatch && budget > 0) {
      const sequence = this.#waiting[0];
      if (!sequence || sequence.pending !== null || !this.#admit(sequence)) break;
      this.#waiting.shift();
      this.#running.push(sequence);
      const span = this.#spanOf(sequence, budget);
      if (!span) break;
      spans.push(span);
      budget -= span.to - span.from;
    }
    // Pages of a sequence may have gone to an earlier one after its span was made.
    if (this.#running === before) return spans;
    return spans.filter(({ sequence }) => this.#running.includes(sequence));
  }

  /** Gives a sequence's pages back and forgets it. */
  remove(sequence: Sequence): void {
    this.#pool.release(sequence.pages);
    sequence.pages = [];
    this.#running = this.#running.filter((other) => other !== sequence);
    const place = this.#waiting.indexOf(sequence);
    if (place >= 0) this.#waiting.splice(place, 1);
  }

  #dropDone(): void {
    for (const sequence of this.all()) if (sequence.done) this.remove(sequence);
  }

  /** Shares the remembered pages of a sequence's text. Its last token is always computed. */
  #admit(sequence: Sequence): boolean {
    const { size, free } = this.#pool;
    const limit = Math.floor((sequence.tokens.length - 1) / size);
    const pages = this.#pool.share(sequence.tokens, limit);
    const needed = Math.ceil(sequence.length / size) - pages.length;
    // One page is left for each running sequence, so that the newcomer does not drive others out.
    if (needed > this.#pool.free - (this.#running.length > 0 ? this.#running.length : 0)) {
      this.#pool.release(pages);
      if (this.#running.length > 0 || free < needed) return false;
    }
    sequence.pages = pages;
    sequence.computed = pages.length * size;
    sequence.remembered = pages.length;
    this.sharedTokens += sequence.computed;
    return true;
  }

  /** The next tokens of a sequence, with pages for them; null if it has none to compute now. */
  #spanOf(sequence: Sequence, budget: number): TokenSpan | null {
    const { length, computed: from, promptLength, settings } = sequence;
    const left = length - from;
    // All its tokens are on their way, or it is a prompt that has to wait.
    if (left <= 0 || (left > 1 && budget <= 0)) return null;
    const to = from + (left === 1 ? 1 : Math.min(left, budget));
    const draws = to === length;
    // The answer's last token is on its way.
    if (draws && length - promptLength >= settings.maxTokens) return null;
    if (!this.#grow(sequence, to)) return null;
    return { sequence, from, to, draws };
  }

  /** Gives a sequence pages for `length` tokens; takes them from the newest others if need be. */
  #grow(sequence: Sequence, length: number): boolean {
    while (sequence.pages.length * this.#pool.size < length) {
      const page = this.#pool.take();
      if (page !== null) {
        sequence.pages.push(page);
        continue;
      }
      const newest = this.#running.at(-1) as Sequence;
      this.#preempt(newest);
      if (newest === sequence) return false;
    }
    return true;
  }

  #preempt(sequence: Sequence): void {
    this.remove(sequence);
    sequence.computed = 0;
    sequence.remembered = 0;
    this.#waiting.unshift(sequence);
  }
}
