/** Code shared by the strategies: averages over all ranks, and reductions in f32 or bf16. */
import { checkChoice, checkInstance, checkObject } from "../core/check.js";
import { native } from "../core/native.js";
import { empty, type Tensor, untracked } from "../core/tensor.js";
import type { ParameterGroup } from "../nn/group.js";
import type { Layout, ParallelStrategy } from "../nn/parallel.js";
import { Communicator, type Work } from "./communicator.js";

export type StrategyName = "replicated" | "zero1" | "full_shard" | "hybrid_shard";
export type ReduceDType = "fp32" | "bf16";

export interface StrategyOptions {
  /** All ranks of the run. */
  world: Communicator;
  /** Dtype in which gradients are summed. */
  reduce: ReduceDType;
}

export abstract class Strategy implements ParallelStrategy {
  abstract readonly layout: Layout;
  readonly worldSize: number;
  readonly rank: number;
  readonly writes: boolean;
  protected readonly world: Communicator;
  protected readonly reduce: ReduceDType;
  protected groups: readonly ParameterGroup[] = [];

  constructor(options: StrategyOptions) {
    checkObject("strategy", "options", options);
    const { world, reduce } = options;
    checkInstance("strategy", "world", world, Communicator, "a Communicator");
    checkChoice("strategy", "reduce", reduce, ["fp32", "bf16"]);
    this.world = world;
    this.reduce = reduce;
    this.worldSize = world.size;
    this.rank = world.rank;
    this.writes = world.rank === 0;
  }

  attach(groups: readonly ParameterGroup[]): void {
    this.groups = groups;
  }

  abstract needed(group: ParameterGroup, backward: boolean): void;
  abstract gradientNeeded(group: ParameterGroup): void;
  abstract gradientsComplete(group: ParameterGroup): void;
  abstract beginMicroBatch(last: boolean): void;
  abstract finishGradients(): void;
  abstract sumSquares(squares: Tensor): void;
  abstract weightsChanged(group: ParameterGroup): void;
  abstract gather(group: ParameterGroup, owned: Tensor): Tensor;

  average(tensor: Tensor): void {
    this.world.allReduce(tensor, "avg").wait();
  }

  /** Gathers a buffer of which every rank holds a part. */
  protected gatherOver(comm: Communicator, group: ParameterGroup, owned: Tensor): Tensor {
    const whole = empty([group.size], owned, "gather");
    comm.allGather(owned, whole).wait();
    return whole;
  }
}

/**
 * Averages over the ranks, in place, in the reduction's dtype.
 * @returns work whose `wait()` orders later operations after the result
 */
export function startAllReduce(comm: Communicator, tensor: Tensor, reduce: ReduceDType): Work {
  if (reduce === "fp32") return comm.allReduce(tensor, "avg");
  const rounded = untracked(tensor.shape, "bf16", tensor.device, "allReduce");
  native.cast(tensor.native, rounded.native);
  const work = comm.allReduce(rounded, "avg");
  return then(work, () => {
    native.cast(rounded.native, tensor.native);
    rounded.dispose();
  });
}

/** Averages this rank's part of `input` over the ranks, into `output` (f32); see startAllReduce. */
export function startReduceScatter(
  comm: Communicator,
  input: Tensor,
  output: Tensor,
  reduce: ReduceDType,
): Work {
  if (reduce === "fp32") return comm.reduceScatter(input, output, "avg");
  const rounded = untracked(input.shape, "bf16", input.device, "reduceScatter");
  const part = untracked(output.shape, "bf16", input.device, "reduceScatter");
  native.cast(input.native, rounded.native);
  const work = comm.reduceScatter(rounded, part, "avg");
  rounded.dispose();
  return then(work, () => {
    native.cast(part.native, output.native);
    part.dispose();
  });
}

function then(work: Work, finish: () => void): Work {
  return {
    wait() {
      work.wait();
      finish();
    },
    done: () => work.done(),
  };
}
