/** Timelines of real processes: on the CPU over Gloo, on a GPU over NCCL. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  chromeTrace,
  summariseTimeline,
  type Timeline,
  type TimelineSpan,
} from "../../lib/dist/timeline.js";
import { buildLibrary } from "../cli/build.js";
import { device, endRanks, runRanks } from "./comm-ranks.js";

beforeAll(buildLibrary);
afterAll(endRanks);

test("collectives, waits and phases of two ranks: what computing hides is not exposed", async () => {
  // The work is long enough that a rank delayed by the scheduler still finds the other one
  // computing.
  const work = device === "cpu" ? { side: 512, products: 300 } : { side: 4096, products: 100 };
  const results = await runRanks("timeline", 2, { options: work });
  for (const [rank, { code, said, stderr }] of results.entries()) {
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    const timeline = said[0] as Timeline;
    expect(timeline.rank).toBe(rank);
    expect(timeline.steps).toHaveLength(2);
    const of = (kind: TimelineSpan["kind"]) => timeline.spans.filter((span) => span.kind === kind);
    expect(of("compute").map(({ name }) => name)).toEqual(
      expect.arrayContaining(["waits", "hides"]),
    );
    expect(of("compute").map(({ name }) => name)).not.toContain("not shown");
    for (const kind of ["communication", "waiting"] as const) {
      expect(of(kind).map(({ name, group, bytes }) => ({ name, group, bytes }))).toEqual(
        Array(2).fill({ name: "allReduce", group: "all", bytes: 4_000_000 }),
      );
    }
    for (const { startMs, endMs } of timeline.spans) expect(endMs).toBeGreaterThanOrEqual(startMs);
    const [alone, hidden] = summariseTimeline(timeline) as [Summary, Summary];
    // In the first step the compute stream waits for the sum, from its own arrival to the sum's end.
    // In the second it hardly waits.
    const [sum, wait] = [of("communication")[0], of("waiting")[0]] as [TimelineSpan, TimelineSpan];
    expect(alone.exposedMs).toBeCloseTo(wait.endMs - wait.startMs, 6);
    expect(Math.min(sum.endMs, wait.endMs)).toBeGreaterThan(Math.max(sum.startMs, wait.startMs));
    expect(wait.endMs).toBeGreaterThanOrEqual(sum.endMs);
    expect(hidden.exposedMs).toBeLessThan(0.5 * hidden.communicationMs);
    expect(hidden.communicationMs).toBeGreaterThan(0);
    for (const { stepMs, communicationMs } of [alone, hidden])
      expect(stepMs).toBeGreaterThan(communicationMs);
  }
});

type Summary = ReturnType<typeof summariseTimeline>[number];

describe("figures and files of a timeline", () => {
  const timeline: Timeline = {
    rank: 3,
    steps: [
      { startMs: 10, endMs: 20 },
      { startMs: 20, endMs: 40 },
    ],
    spans: [
      { kind: "compute", name: "forward head", startMs: 10, endMs: 40 },
      { kind: "communication", name: "allGather", group: "world", bytes: 8, startMs: 5, endMs: 12 },
      {
        kind: "communication",
        name: "allReduce",
        group: "inner",
        bytes: 8,
        startMs: 11,
        endMs: 14,
      },
      {
        kind: "communication",
        name: "allReduce",
        group: "world",
        bytes: 8,
        startMs: 19,
        endMs: 21,
      },
      { kind: "waiting", name: "allReduce", group: "world", bytes: 8, startMs: 20.5, endMs: 21 },
    ],
  };

  test("what overlaps counts once, and to the step in which it happens", () => {
    expect(summariseTimeline(timeline)).toEqual([
      { stepMs: 10, communicationMs: 4 + 1, exposedMs: 0 },
      { stepMs: 20, communicationMs: 1, exposedMs: 0.5 },
    ]);
  });

  test("Chrome's format: a process for a rank, a thread for each stream, microseconds", () => {
    const { traceEvents } = chromeTrace([timeline]);
    const names = traceEvents.filter(({ ph }) => ph === "M").map(({ args }) => args?.name);
    expect(names).toEqual([
      "rank 3",
      "compute",
      "communication (world)",
      "communication (inner)",
      "waiting",
    ]);
    const events = traceEvents.filter(({ ph }) => ph === "X");
    expect(events).toHaveLength(timeline.spans.length);
    expect(events[1]).toEqual({
      ...{ ph: "X", name: "allGather", pid: 3, tid: 1, ts: 5000, dur: 7000 },
      args: { group: "world", bytes: 8 },
    });
    expect(new Set(events.map(({ tid }) => tid)).size).toBe(4);
  });
});
