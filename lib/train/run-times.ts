import {
  addWaits,
  type DeviceWaitMs,
  DeviceWaits,
  describeWaits,
  noWaits,
  type PauseMs,
  type WaitTotals,
} from "./device-waits.js";
import { HostMeter, type HostTime } from "./host-meter.js";
import type { StepClock } from "./step-clock.js";

/**
 * The main thread's work for a step. The parts belong to the step; the other figures cover the time
 * since the last step's end.
 */
export interface HostStep extends HostTime {
  forwardMs: number;
  backwardMs: number;
  optimizerMs: number;
  /**
   * Requesting windows and assembling micro-batches. Converting a file's bytes to ids is not
   * included.
   */
  loaderMs: number;
  /** Making this step's record, and handing over the previous one to be written. */
  metricsMs: number;
}

/** Breakdown of a run's time. */
export interface RunTimeTotals {
  /** Milliseconds since the start. */
  ms: number;
  steps: number;
  waitMs: WaitTotals;
  host: HostStep;
}

const noHost = (): HostStep => ({
  activeMs: 0,
  forwardMs: 0,
  backwardMs: 0,
  optimizerMs: 0,
  loaderMs: 0,
  metricsMs: 0,
  minor: { count: 0, ms: 0 },
  major: { count: 0, ms: 0 },
});

/** Sums the main thread's work over some steps. */
export function sumHost(steps: readonly HostStep[]): HostStep {
  const sum = noHost();
  for (const step of steps) {
    for (const name of ["minor", "major"] as const) {
      sum[name].count += step[name].count;
      sum[name].ms += step[name].ms;
    }
    for (const name of [
      "activeMs",
      "forwardMs",
      "backwardMs",
      "optimizerMs",
      "loaderMs",
      "metricsMs",
    ] as const)
      sum[name] += step[name];
  }
  return sum;
}

/** Averages the main thread's work over some steps. */
export function meanHost(steps: readonly HostStep[]): HostStep {
  const { minor, major, ...parts } = sumHost(steps);
  const each = <T extends object>(sums: T): T =>
    Object.fromEntries(
      Object.entries(sums).map(([name, sum]) => [name, sum / Math.max(1, steps.length)]),
    ) as T;
  return { ...each(parts), minor: each(minor), major: each(major) };
}

/** Rounds milliseconds to three decimals; more would only make records longer. */
function microseconds<T extends { [K in keyof T]: number }>(times: T): T {
  const rounded = Object.entries<number>(times).map(([name, ms]) => [name, Number(ms.toFixed(3))]);
  return Object.fromEntries(rounded) as T;
}

/** Keeps a run's times, step by step and in total. */
export class RunTimes {
  readonly #started = performance.now();
  readonly #waits = new DeviceWaits(this.#started);
  readonly #meter = new HostMeter();
  readonly #totals: WaitTotals = noWaits();
  #host = noHost();
  #steps = 0;
  #loaderMs = 0;
  #writingMs = 0;

  /**
   * Adds a step that the device has finished.
   * @param loaderMs total time used by the loader so far
   * @param since time at which the host began to make the step's record
   */
  step(
    clock: StepClock,
    reached: readonly number[],
    loaderMs: number,
    since: number,
  ): { deviceWaitMs: DeviceWaitMs; host: HostStep } {
    const deviceWaitMs = microseconds(this.#waits.step(clock.passes, reached));
    addWaits(this.#totals, deviceWaitMs);
    const { forward, backward, optimizer } = clock.recordingMs;
    const { activeMs, minor, major } = this.#meter.lap();
    const host: HostStep = {
      ...microseconds({
        activeMs,
        forwardMs: forward,
        backwardMs: backward,
        optimizerMs: optimizer,
        loaderMs: loaderMs - this.#loaderMs,
        metricsMs: this.#writingMs + performance.now() - since,
      }),
      minor: microseconds(minor),
      major: microseconds(major),
    };
    this.#writingMs = 0;
    this.#loaderMs = loaderMs;
    this.#host = sumHost([this.#host, host]);
    this.#steps++;
    return { deviceWaitMs, host };
  }

  /** Hands a record over to be written, and measures the time. */
  writing(write: () => void): void {
    const from = performance.now();
    write();
    this.#writingMs += performance.now() - from;
  }

  /** Runs work for which training pauses, and measures the time. */
  async pause<T>(part: keyof PauseMs, pauses: PauseMs, work: () => Promise<T>): Promise<T> {
    const from = performance.now();
    try {
      return await work();
    } finally {
      const until = performance.now();
      pauses[part] = Number((until - from).toFixed(3));
      addWaits(this.#totals, { [part]: until - from });
      this.#waits.paused(until);
    }
  }

  get totals(): RunTimeTotals {
    return {
      ms: performance.now() - this.#started,
      steps: this.#steps,
      waitMs: { ...this.#totals },
      host: sumHost([this.#host]),
    };
  }

  stop(): void {
    this.#meter.stop();
  }
}

/** Describes a run's times in two lines. */
export function describeTimes({ ms, steps, waitMs, host }: RunTimeTotals): string[] {
  return [describeWaits(waitMs, ms), describeHost(host, steps)];
}

/**
 * Describes the main thread's milliseconds per step, by part, and V8's collections. @param host
 * sums over the steps
 */
export function describeHost(host: HostStep, steps: number): string {
  const each = (ms: number) => (ms / Math.max(1, steps)).toFixed(1);
  const { activeMs, forwardMs, backwardMs, optimizerMs, loaderMs, metricsMs, minor, major } = host;
  const collections =
    `${each(minor.count)} minor and ${each(major.count)} major collections ` +
    `(${each(minor.ms + major.ms)} ms)`;
  return (
    `JavaScript ${each(activeMs)} ms a step: forward ${each(forwardMs)}, ` +
    `backward ${each(backwardMs)}, optimizer ${each(optimizerMs)}, loader ${each(loaderMs)}, ` +
    `metrics ${each(metricsMs)}; V8 ${collections}`
  );
}
