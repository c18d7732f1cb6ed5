import type { Device } from "../core/device.js";
import { passedAt, reachedAt } from "../core/runtime.js";

/** A span of time by performance.now(), in milliseconds. */
export interface Span {
  from: number;
  to: number;
}

/** Times of one micro-batch on the host. */
export interface PassTimes {
  /** Wait for the loader. */
  data: Span;
  /** Check of the hardware before the pass (the canary); null if none was due. */
  checks: Span | null;
  /** Enqueuing of forward and backward, and after the last micro-batch of clipping and AdamW. */
  recorded: Span;
}

/** Milliseconds of JavaScript on the main thread for the parts of a step. */
export interface RecordingMs {
  forward: number;
  backward: number;
  optimizer: number;
}

/**
 * Records the times of a step while it is enqueued. It costs a few calls of performance.now() and
 * one mark per micro-batch.
 */
export class StepClock {
  readonly passes: PassTimes[] = [];
  readonly recordingMs: RecordingMs = { forward: 0, backward: 0, optimizer: 0 };
  /** Times at which the device finished each pass except the last, which ends with the step. */
  readonly #marks: Promise<number>[] = [];
  readonly #device: Device;
  #data: Span = { from: 0, to: 0 };
  #checks: Span | null = null;

  constructor(device: Device) {
    this.#device = device;
  }

  /** Milliseconds that the host waited for the loader. */
  get dataWaitMs(): number {
    return this.passes.reduce((sum, { data }) => sum + data.to - data.from, 0);
  }

  async data<T>(next: () => Promise<T>): Promise<T> {
    const from = performance.now();
    const batch = await next();
    this.#data = { from, to: performance.now() };
    return batch;
  }

  async checks(verify: () => Promise<void>): Promise<void> {
    const from = performance.now();
    await verify();
    this.#checks = { from, to: performance.now() };
  }

  /** Enqueues a micro-batch's pass. */
  pass(record: () => void, last: boolean): void {
    const from = performance.now();
    record();
    const recorded = { from, to: performance.now() };
    this.passes.push({ data: this.#data, checks: this.#checks, recorded });
    // All of a step's batches are there before its first pass: the later ones wait for none.
    this.#data = { from: recorded.to, to: recorded.to };
    this.#checks = null;
    if (last) return;
    // Not a wait, which would consume a failure: the following update would then run with half of
    // the gradients.
    this.#marks.push(passedAt(this.#device));
  }

  /** Runs a synchronous part of the recording. */
  part<T>(name: keyof RecordingMs, record: () => T): T {
    const from = performance.now();
    const result = record();
    this.recordingMs[name] += performance.now() - from;
    return result;
  }

  /**
   * Called when the whole step is enqueued. @returns times at which the device finished each pass;
   * the last is that of the whole step
   */
  end(): Promise<number[]> {
    const last = this.passes.at(-1);
    if (last) last.recorded.to = performance.now();
    return Promise.all([...this.#marks, reachedAt(this.#device)]);
  }
}
