/**
 * One rank's step as two queues, the device's own work and its collectives. A collective begins
 * when everything that the device was given before it is done and the collective before it has
 * ended; whatever waits for it begins after it. Kernels beside a collective take longer by a share
 * of its time. All ranks are taken to be equally fast here. Left out: that a host may be late to
 * enqueue.
 */
import type { CollectiveKind } from "../dist/communicator.js";

/** The collectives that move parameters and gradients. */
export type RingCollective = Exclude<CollectiveKind, "broadcast" | "barrier">;

/** Ranks that communicate, as rings: each link carries an equal share. */
export interface Ring {
  ranks: number;
  /** Nodes that they are spread over. */
  nodes: number;
  /** Bytes a second and direction that each rank's traffic gets. */
  bandwidth: number;
}

/**
 * Seconds that a ring needs to start and for a step within a node and between nodes: NCCL's own
 * (ring, simple protocol, NVLink, src/graph/tuning.cc), by which it chooses its algorithms.
 */
const latency = { start: 8.4e-6, withinNode: 3.4e-6, betweenNodes: 14e-6 };

/**
 * Seconds that each round of a large collective takes beyond its bytes over the bandwidth, until
 * all its channels are at work: 0.11 ms of a gather, 0.13 of a reduce-scatter and 0.20 of an
 * all-reduce, by collectives of 88 to 262 MB between two H200 beside computing (docs/LOG.md). A
 * small one takes at most twice its time.
 */
const rampSeconds = 0.1e-3;

/**
 * Bytes that a rank sends, by the bandwidth-optimal algorithm.
 * @param bytes of the larger of input and output
 */
export function sentBytes(kind: RingCollective, { ranks }: Ring, bytes: number): number {
  const rounds = kind === "allReduce" ? 2 : 1;
  return (rounds * bytes * (ranks - 1)) / ranks;
}

/** Seconds from the start of a collective to its end. */
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
  /** When the device is done with what it has been given. */
  now = 0;
  /** Seconds in which it had nothing to do but wait for a collective. */
  exposed = 0;
  /** Seconds of all collectives. */
  communication = 0;
  /** Seconds that its kernels took longer because of collectives beside them. */
  slowed = 0;
  sent = 0;
  /** Until then collectives are on their way. */
  #free = 0;
  readonly #slowdown: number;

  /** @param slowdown by which share of their time kernels beside a collective take longer */
  constructor(slowdown: number) {
    this.#slowdown = slowdown;
  }

  compute(seconds: number): void {
    const beside = Math.max(0, Math.min(this.#free - this.now, seconds * (1 + this.#slowdown)));
    const longer = beside - beside / (1 + this.#slowdown);
    this.slowed += longer;
    this.now += seconds + longer;
  }

  /** Starts a collective. @returns when it ends */
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
