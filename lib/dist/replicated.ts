import type { Tensor } from "../core/tensor.js";
import type { ParameterGroup } from "../nn/group.js";
import { type Layout, undivided } from "../nn/parallel.js";
import { type Arrival, exchangeOf, type SharedGroup, type StrategyOptions } from "./exchange.js";
import { WholeGradients } from "./whole-gradients.js";

/** When `Replicated` sends what. */
export class ReplicatedSchedule<Group extends SharedGroup, Data> extends WholeGradients<
  Group,
  Data
> {
  readonly layout: Layout = undivided;

  protected startReduction(group: Group): Arrival {
    return this.world.averageGradients(group);
  }

  /** Nothing to do: every rank has all weights. */
  needed(): void {}
  /** Does nothing: every rank has summed the same gradients. */
  sumSquares(): void {}
  /** Nothing to do: every rank makes the same update. */
  weightsChanged(): void {}

  /** A whole group: it is here already. */
  gather(group: Group, owned: Data): Data {
    return this.world.whole(group, owned);
  }
}

/** Every rank holds the whole model, and gradients are averaged over all ranks. */
export class Replicated extends ReplicatedSchedule<ParameterGroup, Tensor> {
  constructor(options: StrategyOptions) {
    super(exchangeOf(options));
  }
}
