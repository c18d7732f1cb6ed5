import {
  constants,
  type PerformanceEntry,
  PerformanceObserver,
  performance,
} from "node:perf_hooks";

/**
 * V8's garbage collections of one kind: their number, and the milliseconds that they paused the
 * main thread.
 */
export interface Collections {
  count: number;
  ms: number;
}

/** Activity of the main thread in some period. */
export interface HostTime {
  /**
   * Milliseconds in which it ran anything: JavaScript, garbage collections, calls into the addon.
   */
  activeMs: number;
  /** Collections of the young generation. */
  minor: Collections;
  /**
   * Collections of the whole heap (mark-compact), with the steps of incremental marking. V8's own
   * threads mark in addition.
   */
  major: Collections;
}

const none = (): Collections => ({ count: 0, ms: 0 });

/**
 * Measures the main thread's busy time and V8's garbage collections, from lap to lap. A collection
 * becomes known one turn of the event loop later, so it may count in the next lap.
 */
export class HostMeter {
  readonly #observer: PerformanceObserver;
  #utilization = performance.eventLoopUtilization();
  #minor = none();
  #major = none();

  constructor() {
    this.#observer = new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) {
        const { duration, detail } = entry as PerformanceEntry & { detail?: { kind?: number } };
        const kind = detail?.kind;
        const counted = kind === constants.NODE_PERFORMANCE_GC_MINOR ? this.#minor : this.#major;
        counted.ms += duration;
        // Incremental marking and weak callbacks are parts of a collection, not collections of
        // their own.
        const whole =
          kind === constants.NODE_PERFORMANCE_GC_MINOR ||
          kind === constants.NODE_PERFORMANCE_GC_MAJOR;
        if (whole) counted.count++;
      }
    });
    this.#observer.observe({ entryTypes: ["gc"] });
  }

  /** Measurements since the last lap, or since the start. */
  lap(): HostTime {
    const now = performance.eventLoopUtilization();
    const { active } = performance.eventLoopUtilization(now, this.#utilization);
    const time = { activeMs: active, minor: this.#minor, major: this.#major };
    this.#utilization = now;
    this.#minor = none();
    this.#major = none();
    return time;
  }

  stop(): void {
    this.#observer.disconnect();
  }
}
