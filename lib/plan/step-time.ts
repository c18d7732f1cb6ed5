/**
 * A step of a run's strategy over simulated ranks and a simulated clock: what computes when, what
 * is sent, who waits.
 */
import type { RunConfig } from "../config/index.js";
import { FullShardSchedule } from "../dist/full-shard.js";
import { ReplicatedSchedule } from "../dist/replicated.js";
import type { StrategyName } from "../dist/strategy.js";
import { Zero1Schedule } from "../dist/zero1.js";
import { costOf } from "../model/shapes.js";
import type { ParallelStrategy } from "../nn/parallel.js";
import { flopsPerToken } from "./flops.js";
import { type Division, groupSizes, passOf } from "./memory.js";
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
  /** The optimizer, per parameter that it updates. */
  optimizerPerParameter: number;
  /** What several GPUs cost each other besides waiting. */
  together: Together;
}

export interface Together {
  /**
   * By which share of their time kernels beside a collective take longer: it takes multiprocessors
   * and bandwidth from them.
   */
  slowdown: number;
  /**
   * By which share forward and backward take longer because a step takes as long as the slowest
   * GPU's.
   */
  skew: number;
}

export interface Rings {
  world: Ring;
  shard: Ring;
  replica: Ring;
}

/** What a step takes on each rank. */
export interface StepTime {
  seconds: number;
  /** Of it, waiting for collectives. */
  exposedSeconds: number;
  /** Of all collectives, most of which run beside other work. */
  communicationSeconds: number;
  /** Of it, because GPUs are not equally fast and collectives slow the kernels beside them. */
  slowedSeconds: number;
  /** Bytes that a rank sends. */
  sentBytes: number;
}

/** One step of a division of the work, once the first steps are over. */
export function stepTime(
  config: RunConfig,
  division: Division,
  rings: Rings,
  work: GpuSeconds,
): StepTime {
  const queues = new StepQueues(work.together.slowdown);
  const strategy = strategyOf(division.parallel, queues, rings, {
    weight: config.precision === "bf16" ? 2 : 4,
    gradient: division.reduce === "bf16" ? 2 : 4,
  });
  const groups = groupsOf(config, strategy);
  strategy.attach(groups);
  const step = () => runStep(config, { queues, strategy, groups, work });
  // A step ends with what the next one begins with: weights on their way, groups that are still
  // whole.
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

/** The strategy that a run has by this name, over simulated ranks; see Cluster.connect. */
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

/** The groups of a store that is divided as the strategy says. */
function groupsOf(config: RunConfig, { layout }: SimulatedStrategy): SimulatedGroup[] {
  const slots = [{}, {}] as const;
  return groupSizes(config.model, layout.parts).map(
    (size, index) => new SimulatedGroup(index, size, layout, slots),
  );
}

/** What a step is run on. */
export interface SimulatedRun {
  queues: StepQueues;
  strategy: SimulatedStrategy;
  groups: readonly SimulatedGroup[];
  work: GpuSeconds;
}

/** `trainStep` and `AdamW.step`, in the order in which they call a strategy. */
function runStep(config: RunConfig, running: SimulatedRun): void {
  const { queues, strategy, groups, work } = running;
  const { accumulation } = config.batch;
  for (let micro = 0; micro < accumulation; micro++) {
    strategy.beginMicroBatch(micro === accumulation - 1);
    simulatePass(config, running, work.pass * (1 + work.together.skew));
  }
  // The mean loss and whether a rank wants to stop.
  strategy.average({ bytes: 2 * 4 });
  strategy.finishGradients();
  strategy.sumSquares({ bytes: groups.length * 4 });
  for (const group of groups) {
    queues.compute(work.optimizerPerParameter * group.owned);
    strategy.weightsChanged(group);
  }
}

/** Forward and backward of a model's groups: embedding, blocks, last norm and head. */
export function simulatePass(
  { model, data, recompute }: RunConfig,
  { queues, strategy, groups }: SimulatedRun,
  seconds: number,
): void {
  const { blocks: layers, vocabSize, headWidth, tiedHead } = passOf(model);
  const [embedding, ...others] = groups as [SimulatedGroup, ...SimulatedGroup[]];
  const blocks = others.slice(0, layers);
  const last = others[layers] as SimulatedGroup;
  const head = tiedHead ? embedding : last;
  // The fused head computes its gradients in forward; a block's backward pass takes twice its
  // forward pass.
  const flops = flopsPerToken(model, data.sequenceLength);
  const headFlops = 6 * vocabSize * headWidth;
  const again = recomputedFlops(model, data.sequenceLength, recompute);
  const perFlop = seconds / (flops.causal + again);
  const forward = ((flops.causal - headFlops) / 3 / layers) * perFlop;
  const backward = 2 * forward + (again / layers) * perFlop;

  strategy.needed(embedding, false);
  for (const block of blocks) {
    strategy.needed(block, false);
    queues.compute(forward);
  }
  strategy.needed(last, false);
  if (head !== last) strategy.needed(head, false);
  queues.compute(headFlops * perFlop);

  strategy.needed(head, true);
  strategy.gradientNeeded(head);
  if (head !== last) {
    strategy.needed(last, true);
    strategy.gradientNeeded(last);
  }
  strategy.gradientsComplete(last);
  for (const block of blocks.reverse()) {
    strategy.needed(block, true);
    strategy.gradientNeeded(block);
    queues.compute(backward);
    strategy.gradientsComplete(block);
  }
  strategy.gradientNeeded(embedding);
  strategy.gradientsComplete(embedding);
}

/** FLOPs of a token that are spent a second time. */
export function recomputedFlops(
  model: RunConfig["model"],
  sequenceLength: number,
  recompute: RunConfig["recompute"],
): number {
  return costOf(model).recomputedFlops(sequenceLength, recompute);
}
