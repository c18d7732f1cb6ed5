import { DivergedError } from "../core/errors.js";

/** How many steps the guard may skip before the run ends. */
export interface SkipLimits {
  /** More consecutive skips than this end the run. */
  maxConsecutiveSkips: number;
  /** More skips than this among the last `window` steps end the run. */
  maxSkipsPerWindow: number;
  window: number;
}

/**
 * Follows the guard's decisions, and reports when there were too many skips for the run to continue
 * by itself (FAULTS N4).
 */
export class SkipHistory {
  readonly #limits: SkipLimits;
  /** Outcomes of the last steps, oldest first, at most `window`: 1 skipped, 0 applied. */
  readonly recent: (0 | 1)[];

  constructor(limits: SkipLimits, recent: readonly (0 | 1)[] = []) {
    this.#limits = limits;
    this.recent = recent.slice(-limits.window);
  }

  add(skipped: boolean): void {
    this.recent.push(skipped ? 1 : 0);
    if (this.recent.length > this.#limits.window) this.recent.shift();
  }

  /** The error that ends the run, or null. */
  verdict(step: number): DivergedError | null {
    const { maxConsecutiveSkips, maxSkipsPerWindow, window } = this.#limits;
    const inARow = this.recent.length - (this.recent.lastIndexOf(0) + 1);
    const inAll = this.recent.reduce((sum: number, skipped) => sum + skipped, 0);
    const hint =
      "go back to an earlier checkpoint (--resume FOLDER/step-N) with a lower learning rate, or look at the data of these steps";
    if (inARow > maxConsecutiveSkips) {
      return new DivergedError(
        `step ${step}: ${inARow} steps in a row were skipped (guard.maxConsecutiveSkips is ${maxConsecutiveSkips}): ${hint}`,
      );
    }
    if (inAll > maxSkipsPerWindow) {
      return new DivergedError(
        `step ${step}: ${inAll} of the last ${Math.min(window, this.recent.length)} steps were skipped ` +
          `(guard.maxSkipsPerWindow is ${maxSkipsPerWindow}): ${hint}`,
      );
    }
    return null;
  }
}
