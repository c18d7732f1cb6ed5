/**
 * Models one rank's step as two queues: the device's own work and its collectives. A collective
 * begins when all work enqueued before it is done and the previous collective has ended. Work that
 * waits for a collective begins after it. Kernels that run during a collective take longer by a
 * share of its time. The model assumes that all ranks are equally fast, and ignores that a host may
 * enqueue late.
 */
import type { CollectiveKind } from "../dist/communicator.js";

/** The collectives that move parameters and gradients. */
export type RingCollective = Exclude<CollectiveKind, "broadcast" | "barrier">;

/** Ranks that communicate in rings. Each link carries an equal share. */
export interface Ring {
  ranks: number;
  /** Number of nodes that the ranks are spread over. */
  nodes: number;
  /** Bytes per second and direction available to each rank. */
  bandwidth: number;
}

/**
 * Seconds to start a ring, and seconds per step of the ring within a node and between nodes. These
 * are the figures by which NCCL chooses its algorithms (ring, simple protocol, NVLink,
 * src/graph/tuning.cc).
 */
const latency = { start: 8.4e-6, withinNode: 3.4e-6, betweenNodes: 14e-6 };

/**
 * Seconds that each round of a large collective takes beyond bytes / bandwidth, until all its
 * channels are busy. Measured between two H200 while they compute, with collectives of 88 to 262 MB
 * (docs/LOG.md): 0.11 ms for a gather, 0.13 for a reduce-scatter and 0.20 for an all-reduce. A
 * small collective takes at most twice its time.
 */
const rampSeconds = 0.1e-3;

/**
 * Bytes that a rank sends with the bandwidth-optimal algorithm.
 * @param bytes size of the larger of input and output
 */
export function sentBytes(kind: RingCollective, { ranks }: Ring, bytes: number): number {
  const rounds = kind === "allReduce" ? 2 : 1;
  return (rounds * bytes * (ranks - 1)) / ranks;
}

/** Duration of a collective in seconds. */
export function collectiveSeconds(kind: RingCollective, ring: Ring, bytes: number): number {
  const { ranks, nodes, bandwidth } = ring;
  if (ranks === 1) return 0;
  const rounds = kind === "allReduce" ? 2 : 1;
  const between = rounds * (nodes - 1);
  const within = rounds * (ranks - 1) - between;
  const moving = sentBytes(kind, ring, bytes) / bandwidth;
  return (
    latency.start +
    within * latency.withinNode +
    between * latency.betweenNodes +
    moving +
    Math.min(moving, rounds * rampSeconds)
  );
}

/** The two queues of a rank. */
export class StepQueues {
  /** Time at which the device has finished its enqueued work. */
  now = 0;
  /** Seconds in which the device only waited for a collective. */
  exposed = 0;
  /** Total duration of all collectives in seconds. */
  communication = 0;
  /** Seconds that collectives added to the kernels running during them. */
  slowed = 0;
  sent = 0;
  /** Time at which the enqueued collectives end. */
  #free = 0;
  readonly #slowdown: number;

  /** @param slowdown of kernels during a collective, as a share of their time */
  constructor(slowdown: number) {
    this.#slowdown = slowdown;
  }

  compute(seconds: number): void {
    const beside = Math.max(0, Math.min(this.#free - this.now, seconds * (1 + this.#slowdown)));
    const longer = beside - beside / (1 + this.#slowdown);
    this.slowed += longer;
    this.now += seconds + longer;
  }

  /** Starts a collective. @returns the time at which it ends */
  start(kind: RingCollective, ring: Ring, bytes: number): number {
    const seconds = collectiveSeconds(kind, ring, bytes);
    this.#free = Math.max(this.#free, this.now) + seconds;
    this.communication += seconds;
    this.sent += sentBytes(kind, ring, bytes);
    return this.#free;
  }

  wait(end: number): void {
    if (end <= this.now) return;
    this.exposed += end - this.now;
    this.now = end;
  }
}
