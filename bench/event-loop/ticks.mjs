// Measures how late a timer of this process fires. Other work on the event loop, such as a
// server's, is as late.

/** Milliseconds between two ticks. */
export const intervalMs = 10;

/** The value below which `share` of the sorted values lie. */
export function percentile(sorted, share) {
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? 0;
}

/** Median, p99 and largest of some milliseconds, to a hundredth. */
export function spread(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (share) => Number(percentile(sorted, share).toFixed(2));
  return { median: at(0.5), p99: at(0.99), max: at(1) };
}

/** Counts ticks until it is stopped. */
export class Ticks {
  #late = [];
  #started = performance.now();
  #last = this.#started;
  #timer = setInterval(() => {
    const now = performance.now();
    this.#late.push(Math.max(0, now - this.#last - intervalMs));
    this.#last = now;
  }, intervalMs);

  /** @returns the lateness in milliseconds, and the share of due ticks that have fired */
  stop() {
    clearInterval(this.#timer);
    const ms = performance.now() - this.#started;
    // A tick that is still due is late by the time that has passed since.
    const pending = performance.now() - this.#last - intervalMs;
    if (pending > 0) this.#late.push(pending);
    return {
      ms: Math.round(ms),
      lateMs: spread(this.#late),
      ticks: this.#late.length,
      share: Number(Math.min(1, this.#late.length / Math.floor(ms / intervalMs || 1)).toFixed(4)),
    };
  }
}
