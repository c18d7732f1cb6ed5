/**
 * One rank's step as two queues, the device's own work and its collectives, in the order in which lib/dist's strategies give
 * them: a collective begins when everything that the device was given before it is done and the one before it has ended, and
 * what waits for it begins after it. Kernels beside a collective take longer by a share of its time. All ranks are taken to be
 * equally fast here. What is left out: that a host may be late to enqueue.
 */
import type { RunConfig } from "../config/index.js";

export type CollectiveKind = "allReduce" | "reduceScatter" | "allGather";

/** Ranks that communicate, as rings: each link carries an equal share. */
export interface Ring {
  ranks: number;
  /** Nodes that they are spread over. */
  nodes: number;
  /** Bytes a second and direction that each rank's traffic gets. */
  bandwidth: number;
}

/**
 * Seconds that a ring needs to start and for a step within a node and between nodes: NCCL's own (ring, simple protocol, NVLink,
 * src/graph/tuning.cc), by which it chooses its algorithms.
 */
const latency = { start: 8.4e-6, withinNode: 3.4e-6, betweenNodes: 14e-6 };

/**
 * Seconds that each round of a large collective takes beyond its bytes over the bandwidth, until all its channels are at work:
 * 0.11 ms of a gather, 0.13 of a reduce-scatter and 0.20 of an all-reduce, by collectives of 88 to 262 MB between two H200 beside
 * computing (docs/LOG.md). A small one takes at most twice its time.
 */
const rampSeconds = 0.1e-3;

/** Bytes that a rank sends, by the bandwidth-optimal algorithm. @param bytes of the larger of input and output */
export function sentBytes(kind: CollectiveKind, { ranks }: Ring, bytes: number): number {
  const rounds = kind === "allReduce" ? 2 : 1;
  return (rounds * bytes * (ranks - 1)) / ranks;
}

/** Seconds from the start of a collective to its end. */
export function collectiveSeconds(kind: CollectiveKind, ring: Ring, bytes: number): number {
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
export class Timeline {
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
  start(kind: CollectiveKind, ring: Ring, bytes: number): number {
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

/** What a strategy's schedule depends on. */
export interface ScheduleOptions {
  timeline: Timeline;
  /** Elements of each group. */
  sizes: readonly number[];
  /** Bytes of a weight, and of a gradient on its way. */
  weight: number;
  gradient: number;
  world: Ring;
  /** The ranks that share a copy of the model, and those that hold the same part of other copies. */
  shard: Ring;
  replica: Ring;
}

/** The collectives of a strategy, by the calls of ParallelStrategy (lib/nn/parallel.ts). */
export abstract class Schedule {
  constructor(protected readonly options: ScheduleOptions) {}

  protected start(kind: CollectiveKind, ring: Ring, elements: number, bytes: number): number {
    return this.options.timeline.start(kind, ring, elements * bytes);
  }

  protected wait(end: number): void {
    this.options.timeline.wait(end);
  }

  protected size(group: number): number {
    return this.options.sizes[group] as number;
  }

  abstract beginMicroBatch(last: boolean): void;
  abstract needed(group: number, backward: boolean): void;
  abstract gradientNeeded(group: number): void;
  abstract gradientsComplete(group: number): void;
  abstract finishGradients(): void;
  abstract sumSquares(): void;
  abstract weightsChanged(group: number): void;
}

/** Each group's gradients are all-reduced beside the backward pass of the groups before it, once a step. */
class Replicated extends Schedule {
  #ends: number[] = [];
  #last = false;

  beginMicroBatch(last: boolean): void {
    this.#last = last;
  }

  gradientsComplete(group: number): void {
    if (this.#last) this.#ends.push(this.reduceGroup(group));
  }

  protected reduceGroup(group: number): number {
    const { world, gradient } = this.options;
    return this.start("allReduce", world, this.size(group), gradient);
  }

  finishGradients(): void {
    for (const end of this.#ends) this.wait(end);
    this.#ends = [];
  }

  needed(_group: number): void {}
  gradientNeeded(): void {}
  sumSquares(): void {}
  weightsChanged(_group: number): void {}
}

/** As replicated with half the traffic; the new weights are gathered beside the next forward pass. */
class Zero1 extends Replicated {
  readonly #gathers = new Map<number, number>();

  protected override reduceGroup(group: number): number {
    const { world, gradient } = this.options;
    return this.start("reduceScatter", world, this.size(group), gradient);
  }

  override sumSquares(): void {
    this.wait(this.start("allReduce", this.options.world, this.options.sizes.length, 4));
  }

  override weightsChanged(group: number): void {
    const { world, weight } = this.options;
    this.#gathers.set(group, this.start("allGather", world, this.size(group), weight));
  }

  override needed(group: number): void {
    this.wait(this.#gathers.get(group) ?? 0);
    this.#gathers.delete(group);
  }
}

interface SlotState {
  weights: number | null;
  arriving: number;
  gradients: number | null;
  leaving: number;
}

/** lib/dist/full-shard.ts without the data: two slots, one group gathered ahead, one reduced behind. */
class FullShard extends Schedule {
  readonly #slots: readonly SlotState[] = [0, 1].map(() => ({
    weights: null,
    arriving: 0,
    gradients: null,
    leaving: 0,
  }));
  readonly #readInBackward = new Set<number>();
  #backward = false;

  beginMicroBatch(): void {
    this.#backward = false;
  }

  needed(group: number, backward: boolean): void {
    if (backward) this.#backward = true;
    if (this.#backward) this.#readInBackward.add(group);
    const slot = this.#slot(group);
    if (slot.weights !== group) this.#fetch(group);
    this.wait(slot.arriving);
    const next = group + (this.#backward ? -1 : 1);
    if (next < 0 || next >= this.options.sizes.length || this.#slot(next).weights === next) return;
    if (!this.#backward || this.#readInBackward.has(next)) this.#fetch(next);
  }

  #fetch(group: number): void {
    const { shard, weight } = this.options;
    const slot = this.#slot(group);
    slot.weights = group;
    slot.arriving = this.start("allGather", shard, this.size(group), weight);
  }

  gradientNeeded(group: number): void {
    this.#backward = true;
    const slot = this.#slot(group);
    if (slot.gradients === group) return;
    if (slot.gradients !== null) this.#send(slot.gradients);
    this.wait(slot.leaving);
    slot.gradients = group;
  }

  gradientsComplete(group: number): void {
    if (this.#slot(group).gradients === group) this.#send(group);
  }

  #send(group: number): void {
    const { shard, gradient } = this.options;
    const slot = this.#slot(group);
    slot.leaving = this.start("reduceScatter", shard, this.size(group), gradient);
    slot.gradients = null;
  }

  finishGradients(): void {
    for (const slot of this.#slots) this.wait(slot.leaving);
    const { sizes, shard, replica, gradient } = this.options;
    if (replica.ranks === 1) return;
    const ends = sizes.map((size) =>
      this.start("allReduce", replica, size / shard.ranks, gradient),
    );
    for (const end of ends) this.wait(end);
  }

  sumSquares(): void {
    const { shard, sizes } = this.options;
    this.wait(this.start("allReduce", shard, sizes.length, 4));
  }

  weightsChanged(group: number): void {
    const slot = this.#slot(group);
    if (slot.weights !== group) return;
    this.wait(slot.arriving);
    slot.weights = null;
  }

  #slot(group: number): SlotState {
    return this.#slots[group % 2] as SlotState;
  }
}

export const schedules: Readonly<
  Record<RunConfig["parallel"], new (options: ScheduleOptions) => Schedule>
> = { replicated: Replicated, zero1: Zero1, full_shard: FullShard, hybrid_shard: FullShard };
