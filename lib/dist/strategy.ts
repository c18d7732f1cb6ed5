import type { Layout, ParallelStrategy } from "../nn/parallel.js";
import type { Exchange, SharedGroup } from "./exchange.js";

export const strategyNames = ["replicated", "zero1", "full_shard", "hybrid_shard"] as const;

/** Names of the strategies, as in a recipe's `parallel`. */
export type StrategyName = (typeof strategyNames)[number];

/**
 * The common part of the strategies. A schedule is a strategy without its memory. It decides which
 * collective runs when, over the tensors of a run (`Replicated`, `Zero1`, `FullShard`) or over the
 * simulated clock of `plan`.
 */
export abstract class Schedule<Group extends SharedGroup, Data>
  implements ParallelStrategy<Group, Data>
{
  abstract readonly layout: Layout;
  readonly worldSize: number;
  readonly rank: number;
  readonly writes: boolean;
  protected readonly world: Exchange<Group, Data>;
  protected groups: readonly Group[] = [];

  /** @param world all ranks of the run */
  constructor(world: Exchange<Group, Data>) {
    this.world = world;
    this.worldSize = world.size;
    this.rank = world.rank;
    this.writes = world.rank === 0;
  }

  attach(groups: readonly Group[]): void {
    this.groups = groups;
  }

  abstract needed(group: Group, backward: boolean): void;
  abstract gradientNeeded(group: Group): void;
  abstract gradientsComplete(group: Group): void;
  abstract beginMicroBatch(last: boolean): void;
  abstract finishGradients(): void;
  abstract sumSquares(squares: Data): void;
  abstract weightsChanged(group: Group): void;
  abstract gather(group: Group, owned: Data): Data;

  average(data: Data): void {
    this.world.average(data).wait();
  }
}
