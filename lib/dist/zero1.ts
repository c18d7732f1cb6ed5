import type { Tensor } from "../core/tensor.js";
import type { ParameterGroup } from "../nn/group.js";
import type { Layout } from "../nn/parallel.js";
import {
  type Arrival,
  type Exchange,
  exchangeOf,
  type SharedGroup,
  type StrategyOptions,
} from "./exchange.js";
import { WholeGradients } from "./whole-gradients.js";

/** When `Zero1` sends what. */
export class Zero1Schedule<Group extends SharedGroup, Data> extends WholeGradients<Group, Data> {
  readonly layout: Layout;
  /** All-gathers of new weights in progress. */
  readonly #gathers = new Map<Group, Arrival>();

  constructor(world: Exchange<Group, Data>) {
    super(world);
    this.layout = { parts: world.size, part: world.rank, weights: "whole" };
  }

  protected startReduction(group: Group): Arrival {
    return this.world.scatterGradients(group, false);
  }

  /** Adds up the squares of all ranks. @param squares (1) f32 */
  sumSquares(squares: Data): void {
    this.world.sum(squares).wait();
  }

  /** Called after an update of this rank's part: gathers the others'. */
  weightsChanged(group: Group): void {
    this.#gathers.set(group, this.world.gatherWeights(group));
  }

  /** Called before a group's weights are read: waits for the parts of the others. */
  needed(group: Group): void {
    this.#gathers.get(group)?.wait();
    this.#gathers.delete(group);
  }

  /** A whole group from the parts of all ranks. @param owned this rank's part */
  gather(group: Group, owned: Data): Data {
    return this.world.whole(group, owned);
  }
}

/**
 * ZeRO stage 1 (Rajbhandari et al. 2020, arXiv 1910.02054). Every rank holds all weights and
 * gradients, but master weights and moments only of its part of each group. Gradients are averaged
 * to the rank that owns them as soon as a group's backward pass is done. Each rank updates its
 * part, and the new weights are gathered while the next forward pass runs.
 */
export class Zero1 extends Zero1Schedule<ParameterGroup, Tensor> {
  constructor(options: StrategyOptions) {
    super(exchangeOf(options));
  }
}
