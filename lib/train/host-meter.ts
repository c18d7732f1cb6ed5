import {
  constants,
  type PerformanceEntry,
  PerformanceObserver,
  performance,
} from "node:perf_hooks";

/** V8's collections of one kind: how many, and the milliseconds that the main thread stood still for them. */
export interface Collections {
  count: number;
  ms: number;
}

/** What the main thread did in some time. */
export interface HostTime {
  /** Milliseconds in which it ran anything: JavaScript, collections, calls into the addon. */
  activeMs: number;
  /** Of the young generation. */
  minor: Collections;
  /** Of the whole heap (mark-compact), with the steps of incremental marking. V8's own threads mark besides. */
  major: Collections;
}

const none = (): Collections => ({ count: 0, ms: 0 });

/**
 * Measures the main thread from lap to lap: how long it was busy, and V8's collections. A collection is known a turn of the
 * event loop after it, so it may count in the next lap.
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
        // Marking in steps, and weak callbacks, are parts of a collection and none of their own.
        const whole =
          kind === constants.NODE_PERFORMANCE_GC_MINOR ||
          kind === constants.NODE_PERFORMANCE_GC_MAJOR;
        if (whole) counted.count++;
      }
    });
    this.#observer.observe({ entryTypes: ["gc"] });
  }

  /** What happened since the last lap, or since the start. */
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
