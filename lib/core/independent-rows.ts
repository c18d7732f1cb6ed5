import { AsyncLocalStorage } from "node:async_hooks";

const mode = new AsyncLocalStorage<boolean>();

/** Whether products must give a row the same bits whatever the number of rows. */
export function rowsAreIndependent(): boolean {
  return mode.getStore() ?? false;
}

/**
 * Runs `fn` so that the rows of a linear layer's result do not depend, to the bit, on the number of
 * rows. A GPU's fastest algorithm is another for every number of rows, and each rounds in its own
 * order; finding it also takes longer than many of the products of an evaluation. Holds across
 * await.
 */
export function withIndependentRows<T>(fn: () => T): T {
  return mode.run(true, fn);
}
