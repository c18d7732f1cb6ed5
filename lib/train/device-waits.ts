import type { PassTimes, Span } from "./step-clock.js";

/**
 * Milliseconds in which the device had no training work, by the host's activity meanwhile. A wait
 * lasts from the end of one micro-batch on the device to the first call that enqueues the next one.
 */
export interface DeviceWaitMs {
  /** The loader had no micro-batch ready. */
  data: number;
  /** The canary compared bits. */
  checks: number;
  /**
   * Anything else: JavaScript, V8's garbage collections, the caller's own work between two steps.
   */
  host: number;
  /**
   * An upper bound rather than a measured wait: the host was enqueuing a micro-batch while the
   * device had no other. The device waited only as far as it was faster than the host.
   */
  recording: number;
}

/** Milliseconds that training paused after a step, to save, validate, sample or score tasks. */
export interface PauseMs {
  save?: number;
  validation?: number;
  samples?: number;
  scores?: number;
}

function overlap(a: Span, b: Span): number {
  return Math.max(0, Math.min(a.to, b.to) - Math.max(a.from, b.from));
}

/** Tracks the device's idle time from step to step. All times are by performance.now(). */
export class DeviceWaits {
  #doneAt: number;

  /** @param start time at which the run began to enqueue its first step */
  constructor(start: number) {
    this.#doneAt = start;
  }

  /**
   * The waits before and within a step.
   * @param reached times at which the device finished each pass
   */
  step(passes: readonly PassTimes[], reached: readonly number[]): DeviceWaitMs {
    const waits: DeviceWaitMs = { data: 0, checks: 0, host: 0, recording: 0 };
    for (const [index, { data, checks, recorded }] of passes.entries()) {
      const idle = { from: this.#doneAt, to: Math.max(this.#doneAt, recorded.from) };
      const forData = overlap(idle, data);
      const forChecks = checks ? overlap(idle, checks) : 0;
      waits.data += forData;
      waits.checks += forChecks;
      waits.host += idle.to - idle.from - forData - forChecks;
      waits.recording += overlap({ from: idle.to, to: recorded.to }, recorded);
      this.#doneAt = reached[index] as number;
    }
    return waits;
  }

  /** Reports that training has paused until now. The time counts as a pause and not as a wait. */
  paused(until: number): void {
    this.#doneAt = until;
  }
}

/** Time of a run that was not spent on training, in milliseconds. */
export type WaitTotals = DeviceWaitMs & Required<PauseMs>;

export const noWaits = (): WaitTotals => ({
  data: 0,
  checks: 0,
  host: 0,
  recording: 0,
  save: 0,
  validation: 0,
  samples: 0,
  scores: 0,
});

export function addWaits(totals: WaitTotals, more: Partial<WaitTotals>): void {
  for (const [part, ms] of Object.entries(more)) totals[part as keyof WaitTotals] += ms;
}

/** Names of the waits and pauses in reports. */
const waitNames = { data: "data", checks: "checks", host: "host", save: "saves" } as const;
const otherNames = {
  recording: "perhaps while recording",
  validation: "validation",
  samples: "samples",
  scores: "task scores",
} as const;

/** Shares of a time: first that of all waits, then each part of at least 0.05%. */
export function waitParts(totals: WaitTotals, ms: number): string[] {
  const { data, checks, host, save } = totals;
  return [share(data + checks + host + save, ms), ...named(waitNames), ...named(otherNames)];

  function named(names: Partial<Record<keyof WaitTotals, string>>): string[] {
    return Object.entries(names)
      .map(([part, name]) => ({ name, value: totals[part as keyof WaitTotals] }))
      .filter(({ value }) => value / ms >= 0.0005)
      .map(({ name, value }) => `${name} ${share(value, ms)}`);
  }
}

/**
 * Describes waits: `the device waited 1.2% of the time: host 0.3%, saves 0.9%, validation 4.0%`.
 */
export function describeWaits(totals: WaitTotals, ms: number): string {
  const [waited, ...parts] = waitParts(totals, ms);
  return `the device waited ${waited} of the time${parts.length > 0 ? ": " : ""}${parts.join(", ")}`;
}

function share(part: number, ms: number): string {
  return `${((100 * part) / ms).toFixed(1)}%`;
}
