/**
 * Simulates a training step of a run's strategy, with simulated ranks and a simulated clock: the
 * order of computation, the bytes sent and the time spent waiting.
 */
import type { RunConfig } from "../config/index.js";
import { FullShardSchedule } from "../dist/full-shard.js";
import { ReplicatedSchedule } from "../dist/replicated.js";
import type { StrategyName } from "../dist/strategy.js";
import { Zero1Schedule } from "../dist/zero1.js";
import type { ParallelStrategy } from "../nn/parallel.js";
import { flopsOf, recomputedFlops, stepFlops, trainingFlops } from "./flops.js";
import { adapterGroupSizes, type Division, groupSizes, passOf } from "./memory.js";
import {
  type ElementBytes,
  type SimulatedData,
  SimulatedExchange,
  SimulatedGroup,
} from "./simulated-exchange.js";
import { type Ring, StepQueues } from "./step-queues.js";

/** Seconds of one GPU's own work. */
export interface GpuSeconds {
  /** Forward and backward of a micro-batch. */
  pass: number;
  /** The optimizer, per updated parameter. */
  optimizerPerParameter: number;
  /** Muon's products for all matrices; 0 with AdamW. */
  orthogonal: number;
  /** Costs of running several GPUs besides waiting. */
  together: Together;
}

export interface Together {
  /**
   * Slowdown of kernels during a collective, as a share of their time. The collective takes
   * multiprocessors and bandwidth from them.
   */
  slowdown: number;
  /**
   * Share by which forward and backward take longer, because every step waits for the slowest GPU.
   */
  skew: number;
}

export interface Rings {
  world: Ring;
  shard: Ring;
  replica: Ring;
}

/** Duration and traffic of a step on each rank. */
export interface StepTime {
  seconds: number;
  /** Part of the step spent waiting for collectives. */
  exposedSeconds: number;
  /** Duration of all collectives, most of which overlap with other work. */
  communicationSeconds: number;
  /**
   * Part of the step lost because GPUs differ in speed and collectives slow down concurrent
   * kernels.
   */
  slowedSeconds: number;
  /** Bytes that a rank sends. */
  sentBytes: number;
}

/** Simulates one step of a division of the work, in the steady state after the first steps. */
export function stepTime(
  config: RunConfig,
  division: Division,
  rings: Rings,
  work: GpuSeconds,
): StepTime {
  const queues = new StepQueues(work.together.slowdown);
  const strategy = strategyOf(division.parallel, queues, rings, {
    weight: config.precision === "fp32" ? 4 : 2,
    gradient: division.reduce === "bf16" ? 2 : 4,
  });
  const groups = groupsOf(config, strategy);
  strategy.attach(groups);
  const step = () => runStep(config, { queues, strategy, groups, work });
  // A step ends in the state that the next one starts from: weights are in transit, and some groups
  // are still whole.
  step();
  step();
  const before = { ...queues };
  step();
  return {
    seconds: queues.now - before.now,
    exposedSeconds: queues.exposed - before.exposed,
    communicationSeconds: queues.communication - before.communication,
    slowedSeconds:
      queues.slowed - before.slowed + config.batch.accumulation * work.pass * work.together.skew,
    sentBytes: queues.sent - before.sent,
  };
}

type SimulatedStrategy = ParallelStrategy<SimulatedGroup, SimulatedData>;

/** The run's strategy of this name, over simulated ranks; see Cluster.connect. */
function strategyOf(
  parallel: StrategyName,
  queues: StepQueues,
  rings: Rings,
  bytes: ElementBytes,
): SimulatedStrategy {
  const over = (ring: Ring) => new SimulatedExchange(queues, ring, bytes);
  const world = over(rings.world);
  switch (parallel) {
    case "replicated":
      return new ReplicatedSchedule(world);
    case "zero1":
      return new Zero1Schedule(world);
    case "full_shard":
      return new FullShardSchedule(world);
    case "hybrid_shard":
      return new FullShardSchedule(world, over(rings.shard), over(rings.replica));
  }
}

/** The groups of a store that is divided as the strategy requires. */
function groupsOf(config: RunConfig, { layout }: SimulatedStrategy): SimulatedGroup[] {
  const slots = [{}, {}] as const;
  const { model, lora } = config;
  const sizes = lora
    ? adapterGroupSizes(model, lora, layout.parts)
    : groupSizes(model, layout.parts);
  return sizes.map((size, index) => new SimulatedGroup(index, size, layout, slots));
}

/** The strategy, groups and queues that a simulated step uses. */
export interface SimulatedRun {
  queues: StepQueues;
  strategy: SimulatedStrategy;
  groups: readonly SimulatedGroup[];
  work: GpuSeconds;
}

/** Calls the strategy in the order of `trainStep` and of the optimizer's step. */
function runStep(config: RunConfig, running: SimulatedRun): void {
  const { queues, strategy, groups, work } = running;
  const { accumulation } = config.batch;
  for (let micro = 0; micro < accumulation; micro++) {
    strategy.beginMicroBatch(micro === accumulation - 1);
    simulatePass(config, running, work.pass * (1 + work.together.skew));
  }
  // The mean loss, and whether a rank has asked to stop.
  strategy.average({ bytes: 2 * 4 });
  strategy.finishGradients();
  strategy.sumSquares({ bytes: groups.length * 4 });
  const blocks = passOf(config.model).blocks;
  const weight = config.precision === "fp32" ? 4 : 2;
  for (const group of groups) {
    queues.compute(work.optimizerPerParameter * group.owned);
    // The blocks, which come after the embedding, are equal.
    if (work.orthogonal > 0 && group.index >= 1 && group.index <= blocks) {
      strategy.gather(group, { bytes: weight * group.owned });
      queues.compute((work.orthogonal / blocks) * (group.owned / group.size));
    }
    strategy.weightsChanged(group);
  }
}

/**
 * Forward and backward of a model's groups: embedding, blocks, last norm and head. With adapters,
 * only the blocks have groups. A reference of preferences computes first, and has none.
 */
export function simulatePass(
  config: RunConfig,
  { queues, strategy, groups }: SimulatedRun,
  seconds: number,
): void {
  const { reference, blocks, head } = stepFlops(config);
  const perFlop = seconds / (trainingFlops(config).causal + recomputedFlops(config));
  const compute = (flops: number): void => queues.compute(flops * perFlop);
  const ends = config.lora ? null : endsOf(config, groups);
  const groupOf = (block: number): SimulatedGroup =>
    groups[ends ? block + 1 : block] as SimulatedGroup;

  compute(flopsOf(reference));
  if (ends) strategy.needed(ends.embedding, false);
  for (const [index, { forward }] of blocks.entries()) {
    strategy.needed(groupOf(index), false);
    compute(flopsOf(forward));
  }
  if (ends) {
    strategy.needed(ends.last, false);
    if (ends.head !== ends.last) strategy.needed(ends.head, false);
  }
  compute(head.forward);

  if (ends) {
    strategy.needed(ends.head, true);
    strategy.gradientNeeded(ends.head);
  }
  compute(head.backward + head.again);
  if (ends) {
    if (ends.head !== ends.last) {
      strategy.needed(ends.last, true);
      strategy.gradientNeeded(ends.last);
    }
    strategy.gradientsComplete(ends.last);
  }
  for (const [index, { backward, again }] of [...blocks.entries()].reverse()) {
    const group = groupOf(index);
    strategy.needed(group, true);
    strategy.gradientNeeded(group);
    compute(flopsOf(again) + flopsOf(backward));
    strategy.gradientsComplete(group);
  }
  if (!ends) return;
  strategy.gradientNeeded(ends.embedding);
  strategy.gradientsComplete(ends.embedding);
}

/** The groups before and after the blocks, and the one with the head's weights. */
function endsOf({ model }: RunConfig, groups: readonly SimulatedGroup[]) {
  const { blocks, tiedHead } = passOf(model);
  const [embedding, last] = [groups[0], groups[blocks + 1]] as [SimulatedGroup, SimulatedGroup];
  return { embedding, last, head: tiedHead ? embedding : last };
}
