/** A step of a strategy on the timeline: which group computes when, and what it sends. */
import type { RunConfig } from "../config/index.js";
import { costOf } from "../model/architectures.js";
import { flopsPerToken } from "./flops.js";
import { type Division, groupSizes, partsOf, passOf } from "./memory.js";
import { type Ring, type Schedule, schedules, Timeline } from "./step-queues.js";

/** Seconds of one GPU's own work. */
export interface Work {
  /** Forward and backward of a micro-batch. */
  pass: number;
  /** The optimizer, per parameter that it updates. */
  optimizerPerParameter: number;
  /** What several GPUs cost each other besides waiting. */
  together: Together;
}

export interface Together {
  /** By which share of their time kernels beside a collective take longer: it takes multiprocessors and bandwidth from them. */
  slowdown: number;
  /** By which share forward and backward take longer because a step takes as long as the slowest GPU's. */
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
  work: Work,
): StepTime {
  const parts = partsOf(division).optimizer;
  const timeline = new Timeline(work.together.slowdown);
  const sizes = groupSizes(config.model, parts);
  const schedule = new schedules[division.parallel]({
    ...rings,
    timeline,
    sizes,
    weight: config.precision === "bf16" ? 2 : 4,
    gradient: division.reduce === "bf16" ? 2 : 4,
  });
  const update = sizes.map((size) => (work.optimizerPerParameter * size) / parts);
  const step = () => runStep(config, { timeline, schedule, rings, work, update });
  // A step ends with what the next one begins with: weights on their way, groups that are still whole.
  step();
  step();
  const before = { ...timeline };
  step();
  return {
    seconds: timeline.now - before.now,
    exposedSeconds: timeline.exposed - before.exposed,
    communicationSeconds: timeline.communication - before.communication,
    slowedSeconds:
      timeline.slowed - before.slowed + config.batch.accumulation * work.pass * work.together.skew,
    sentBytes: timeline.sent - before.sent,
  };
}

interface Running {
  timeline: Timeline;
  schedule: Schedule;
  rings: Rings;
  work: Work;
  /** Seconds of the optimizer on each group. */
  update: readonly number[];
}

/** `trainStep` and `AdamW.step`, in the order in which they call a strategy. */
function runStep(config: RunConfig, running: Running): void {
  const { timeline, schedule, rings, work, update } = running;
  const { accumulation } = config.batch;
  for (let micro = 0; micro < accumulation; micro++) {
    schedule.beginMicroBatch(micro === accumulation - 1);
    runPass(config, timeline, schedule, work.pass * (1 + work.together.skew));
  }
  // The mean loss and whether a rank wants to stop.
  timeline.wait(timeline.start("allReduce", rings.world, 2 * 4));
  schedule.finishGradients();
  schedule.sumSquares();
  for (const [group, seconds] of update.entries()) {
    timeline.compute(seconds);
    schedule.weightsChanged(group);
  }
}

/** Forward and backward of a model's groups: embedding, blocks, last norm and head. */
function runPass(
  { model, data, recompute }: RunConfig,
  timeline: Timeline,
  schedule: Schedule,
  seconds: number,
): void {
  const { blocks: layers, vocabSize, headWidth, tiedHead } = passOf(model);
  const last = layers + 1;
  const embedding = 0;
  const head = tiedHead ? embedding : last;
  // The fused head computes its gradients in forward; a block's backward pass takes twice its forward pass.
  const flops = flopsPerToken(model, data.sequenceLength);
  const headFlops = 6 * vocabSize * headWidth;
  const again = recomputedFlops(model, data.sequenceLength, recompute);
  const perFlop = seconds / (flops.causal + again);
  const forward = ((flops.causal - headFlops) / 3 / layers) * perFlop;
  const backward = 2 * forward + (again / layers) * perFlop;

  schedule.needed(embedding, false);
  for (let block = 1; block <= layers; block++) {
    schedule.needed(block, false);
    timeline.compute(forward);
  }
  schedule.needed(last, false);
  if (head !== last) schedule.needed(head, false);
  timeline.compute(headFlops * perFlop);

  schedule.needed(head, true);
  schedule.gradientNeeded(head);
  if (head !== last) {
    schedule.needed(last, true);
    schedule.gradientNeeded(last);
  }
  schedule.gradientsComplete(last);
  for (let block = layers; block >= 1; block--) {
    schedule.needed(block, true);
    schedule.gradientNeeded(block);
    timeline.compute(backward);
    schedule.gradientsComplete(block);
  }
  schedule.gradientNeeded(embedding);
  schedule.gradientsComplete(embedding);
}

/** FLOPs of a token that are spent a second time. */
export function recomputedFlops(
  model: RunConfig["model"],
  sequenceLength: number,
  recompute: RunConfig["recompute"],
): number {
  return costOf(model).recomputedFlops(sequenceLength, recompute);
}
