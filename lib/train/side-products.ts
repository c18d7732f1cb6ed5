import { NonFiniteError, TokenizerError } from "../core/errors.js";

/**
 * Makes a run's side products: validation, samples, task scores. A failure must not end the run, so it causes a
 * notice, once for each reason, and the next time it is tried again.
 */
export class SideProducts {
  readonly #notice: (message: string) => void;
  readonly #shared: boolean;
  readonly #told = new Set<string>();

  /** @param shared whether other processes train with this one */
  constructor(notice: (message: string) => void, shared: boolean) {
    this.#notice = notice;
    this.#shared = shared;
  }

  /**
   * Makes one side product.
   * @param together whether all processes of the run work on it at once, if there are others. If
   *   so, the run survives only a failure that is the same on all of them, because only then do
   *   they stay in step
   * @returns null if it failed
   */
  async make<T>(
    what: string,
    step: number,
    together: boolean,
    make: () => Promise<T>,
  ): Promise<T | null> {
    try {
      return await make();
    } catch (error) {
      const everywhere = error instanceof NonFiniteError || error instanceof TokenizerError;
      if (this.#shared && together && !everywhere) throw error;
      this.tell(what, step, error);
      return null;
    }
  }

  /** Notes that something could not be made, once for each reason. */
  tell(what: string, step: number, error: unknown): void {
    const message = error instanceof Error ? error.message : String(error);
    // Messages of one reason differ in their numbers from step to step, so numbers are left out.
    const reason = `${what}: ${message.replace(/[\d.]+/g, "#")}`;
    if (this.#told.has(reason)) return;
    this.#told.add(reason);
    this.#notice(`no ${what} after step ${step}: ${message}; training goes on`);
  }
}
