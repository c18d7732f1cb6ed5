/**
 * Gives the event loop a turn: timers, sockets and signals are served before the caller continues.
 * It is meant for long loops on the main thread, such as loops of many system calls.
 */
export async function turn(): Promise<void> {
  await new Promise<void>((resolve) => setImmediate(resolve));
}

/** Allows a promise to be awaited later. Until then its failure does not count as unhandled. */
export function later<T>(work: Promise<T>): Promise<T> {
  work.catch(() => {});
  return work;
}
