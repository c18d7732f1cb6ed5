/**
 * Gives the event loop a turn: timers, sockets and signals are served before the caller goes on. For loops that are long on
 * the main thread, as many calls of the system are.
 */
export async function turn(): Promise<void> {
  await new Promise<void>((resolve) => setImmediate(resolve));
}

/** Lets a promise be waited for later: until then its failure does not count as unhandled. */
export function later<T>(work: Promise<T>): Promise<T> {
  work.catch(() => {});
  return work;
}
