/**
 * A record of some training steps: the activity of a device's two streams, and how much the
 * communication delayed computing.
 */
import { checkArray, checkNumber, checkObject, checkString } from "../core/check.js";
import type { Communicator } from "./communicator.js";
import { type NativeTimeline, typed } from "./native-comm.js";

/** A span of time, in milliseconds from the timeline's beginning. */
export interface TimelineSpan {
  /**
   * `compute`: a phase of a step, from the first to the last of its operations. `waiting`: the
   * compute stream waits for a collective, within a phase. `communication`: a collective runs.
   */
  kind: "compute" | "waiting" | "communication";
  /** Name of the phase, such as `forward blocks.3`, or of the collective, such as `allGather`. */
  name: string;
  startMs: number;
  endMs: number;
  /** Name of a collective's group of ranks. */
  group?: string;
  /** Bytes of a collective's larger side. */
  bytes?: number;
}

/** Time that one step spent on each kind of work. */
export interface StepSummary {
  stepMs: number;
  /** Time in which a collective ran. */
  communicationMs: number;
  /**
   * Time in which the compute stream waited for a collective. The step would be shorter by this if
   * communication took no time.
   */
  exposedMs: number;
}

/** What the streams of a device did during a step, in milliseconds. */
export interface Timeline {
  rank: number;
  spans: TimelineSpan[];
  /** The whole steps, in order. */
  steps: { startMs: number; endMs: number }[];
}

interface Phase {
  name: string;
  moment: number;
}

/**
 * Records a timeline while it exists. Collectives are recorded automatically, phases of the compute
 * stream when it is told of them. Every moment is an event on a stream of the device, so nothing
 * waits.
 */
export class TimelineRecorder {
  readonly #comms: readonly Communicator[];
  readonly #native: NativeTimeline;
  readonly #rank: number;
  readonly #phases: Phase[] = [];
  readonly #boundaries: number[] = [];

  /** @param comms all groups of this process, at least one; the group of all its ranks first */
  constructor(rank: number, comms: readonly Communicator[]) {
    this.#rank = rank;
    this.#comms = comms;
    this.#native = (comms[0] as Communicator).makeTimeline();
    this.#phases.push({ name: "before", moment: this.#native.mark() });
    for (const comm of comms) comm.follow(this.#native);
  }

  /** Starts a phase: the compute stream's later operations belong to it. */
  phase(name: string): void {
    if (this.#phases.at(-1)?.name === name) return;
    this.#phases.push({ name, moment: this.#native.mark() });
  }

  /**
   * Marks the border between two steps, before the first and after the last. Activity outside of
   * all steps is dropped.
   */
  boundary(): void {
    const moment = this.#native.mark();
    this.#boundaries.push(moment);
    this.#phases.push({ name: "between steps", moment });
  }

  /** Ends the recording, on every rank, and reads it once all recorded work has run. */
  async end(): Promise<Timeline> {
    this.phase("after");
    for (const comm of this.#comms) comm.follow(null);
    for (const comm of this.#comms) await comm.barrier();
    const times = typed(() => this.#native.times());
    const at = (moment: number): number => times[moment] as number;
    const steps = this.#boundaries
      .slice(1)
      .map((end, i) => ({ startMs: at(this.#boundaries[i] as number), endMs: at(end) }));
    const compute = this.#phases.slice(0, -1).map(({ name, moment }, i) => ({
      kind: "compute" as const,
      name,
      startMs: at(moment),
      endMs: at((this.#phases[i + 1] as Phase).moment),
    }));
    const collectives = this.#native.spans().map(({ waiting, start, end, ...rest }) => ({
      kind: waiting ? ("waiting" as const) : ("communication" as const),
      startMs: at(start),
      endMs: at(end),
      ...rest,
    }));
    const [first, last] = [steps[0]?.startMs ?? 0, steps.at(-1)?.endMs ?? 0];
    const spans = [...compute, ...collectives]
      .filter(({ startMs, endMs }) => endMs > first && startMs < last)
      .sort((a, b) => a.startMs - b.startMs || b.endMs - a.endMs);
    return { rank: this.#rank, spans, steps };
  }
}

/** Checks a timeline that may have been read back from JSON. */
function checkTimeline(op: string, name: string, value: unknown): asserts value is Timeline {
  checkObject(op, name, value, "a timeline");
  const { rank, spans, steps } = value as Partial<Timeline>;
  checkNumber(op, `${name}.rank`, rank, { min: 0 });
  checkArray(op, `${name}.spans`, spans, "an array of spans");
  checkArray(op, `${name}.steps`, steps, "an array of steps");
  const checkStretch = (place: string, stretch: unknown): void => {
    checkObject(op, place, stretch, "a stretch of time");
    checkNumber(op, `${place}.startMs`, (stretch as Partial<TimelineSpan>).startMs);
    checkNumber(op, `${place}.endMs`, (stretch as Partial<TimelineSpan>).endMs);
  };
  for (const [index, span] of spans.entries()) {
    const place = `${name}.spans[${index}]`;
    checkStretch(place, span);
    checkString(op, `${place}.kind`, span.kind);
    checkString(op, `${place}.name`, span.name);
    if (span.group !== undefined) checkString(op, `${place}.group`, span.group);
  }
  for (const [index, step] of steps.entries()) checkStretch(`${name}.steps[${index}]`, step);
}

/** Sums up the time that each whole step of a timeline spent on each kind of work. */
export function summariseTimeline(timeline: Timeline): StepSummary[] {
  checkTimeline("summariseTimeline", "timeline", timeline);
  const { spans, steps } = timeline;
  return steps.map(({ startMs, endMs }) => {
    const inside = (kind: TimelineSpan["kind"]): number =>
      coveredMs(
        spans
          .filter((span) => span.kind === kind)
          .map((span) => [Math.max(span.startMs, startMs), Math.min(span.endMs, endMs)]),
      );
    return {
      stepMs: endMs - startMs,
      communicationMs: inside("communication"),
      exposedMs: inside("waiting"),
    };
  });
}

/** Length of the union of some spans. Spans that end before they start count as empty. */
function coveredMs(stretches: readonly (readonly [number, number])[]): number {
  let covered = 0;
  let until = Number.NEGATIVE_INFINITY;
  for (const [start, end] of [...stretches].sort((a, b) => a[0] - b[0])) {
    covered += Math.max(0, end - Math.max(start, until));
    until = Math.max(until, end);
  }
  return covered;
}

/**
 * An event of Chrome's trace format, in microseconds. A process is a rank, and a thread is one of
 * its streams.
 */
export interface ChromeEvent {
  ph: "X" | "M";
  name: string;
  pid: number;
  tid: number;
  ts?: number;
  dur?: number;
  args?: Record<string, unknown>;
}

/**
 * Combines the ranks' timelines in one file for chrome://tracing or https://ui.perfetto.dev. Each
 * counts from its own beginning.
 */
export function chromeTrace(timelines: readonly Timeline[]): { traceEvents: ChromeEvent[] } {
  const op = "chromeTrace";
  checkArray(op, "timelines", timelines, "an array of timelines");
  for (const [index, each] of timelines.entries()) checkTimeline(op, `timelines[${index}]`, each);
  const traceEvents: ChromeEvent[] = [];
  for (const { rank: pid, spans } of timelines) {
    const threads = new Map<string, number>();
    const named = (name: string, args: Record<string, unknown>, tid = 0): void => {
      traceEvents.push({ ph: "M", name, pid, tid, args });
    };
    named("process_name", { name: `rank ${pid}` });
    for (const { kind, name, startMs, endMs, group, bytes } of spans) {
      const stream = kind === "communication" ? `communication (${group})` : kind;
      const tid = threads.get(stream) ?? threads.size;
      if (!threads.has(stream)) {
        threads.set(stream, tid);
        named("thread_name", { name: stream }, tid);
      }
      const [ts, dur] = [startMs * 1000, (endMs - startMs) * 1000];
      traceEvents.push({
        ph: "X",
        name,
        pid,
        tid,
        ts,
        dur,
        ...(group && { args: { group, bytes } }),
      });
    }
  }
  return { traceEvents };
}
