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

/** What the main thread did for a step. The parts are of the step; the rest is of the time since the last step's end. */
export interface HostStep extends HostTime {
  forwardMs: number;
  backwardMs: number;
  optimizerMs: number;
  /** Asking for windows and putting micro-batches together; turning a file's bytes into ids is not counted. */
  loaderMs: number;
  /** Making this step's record, and handing the last one over to be written. */
  metricsMs: number;
}

/** Where the time of a run went. */
export interface RunTimeTotals {
  /** Milliseconds from the start. */
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

/** Sums of what the main thread did in some steps. */
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

/** Means of what the main thread did in some steps. */
export function meanHost(steps: readonly HostStep[]): HostStep {
  const { minor, major, ...parts } = sumHost(steps);
  const each = <T extends object>(sums: T): T =>
    Object.fromEntries(
      Object.entries(sums).map(([name, sum]) => [name, sum / Math.max(1, steps.length)]),
    ) as T;
  return { ...each(parts), minor: each(minor), major: each(major) };
}

/** Milliseconds to three decimals: more would only make records longer. */
function microseconds<T extends { [K in keyof T]: number }>(times: T): T {
  const rounded = Object.entries<number>(times).map(([name, ms]) => [name, Number(ms.toFixed(3))]);
  return Object.fromEntries(rounded) as T;
}

/** Keeps a run's times, step by step and in all. */
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
   * A step that the device has done.
   * @param loaderMs what the loader has used in all
   * @param since when the host began to make its record
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

  /** Hands a record over to be written. */
  writing(write: () => void): void {
    const from = performance.now();
    write();
    this.#writingMs += performance.now() - from;
  }

  /** Something that training stands still for. */
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

/** Where a run's time went, in two lines for a person. */
export function describeTimes({ ms, steps, waitMs, host }: RunTimeTotals): string[] {
  return [describeWaits(waitMs, ms), describeHost(host, steps)];
}

/** The main thread's milliseconds a step, by part, and V8's collections. @param host sums over the steps */
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
