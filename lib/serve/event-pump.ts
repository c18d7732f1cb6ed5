/** A request whose answers may have brought something. */
export interface PumpedReader {
  /** Takes what waits and sends it. It must not throw. @param nowMs by `performance.now()` */
  pump(nowMs: number): void;
}

/**
 * Sends what the answers of all requests have brought: once after each step of the engine, when the
 * next step is on its way, so that each stream is written to once. Sending takes at most half of
 * the event loop's time. Where that is too little for an event a token, events have several tokens.
 */
export class EventPump {
  #ready: PumpedReader[] = [];
  readonly #isReady = new Set<PumpedReader>();
  #scheduled = false;
  /** Time before which nothing is sent. */
  #restsUntil = 0;

  /** Has a reader pumped soon. */
  wake(reader: PumpedReader): void {
    if (this.#isReady.has(reader)) return;
    this.#isReady.add(reader);
    this.#ready.push(reader);
    if (this.#scheduled) return;
    this.#scheduled = true;
    // The engine's own work of this turn comes first.
    setImmediate(this.#run);
  }

  readonly #run = (): void => {
    const startMs = performance.now();
    const earlyMs = this.#restsUntil - startMs;
    if (earlyMs > 0) {
      setTimeout(this.#run, Math.ceil(earlyMs));
      return;
    }
    this.#scheduled = false;
    const readers = this.#ready;
    this.#ready = [];
    this.#isReady.clear();
    for (const reader of readers) reader.pump(startMs);
    const endMs = performance.now();
    this.#restsUntil = endMs + (endMs - startMs);
  };
}
