import type { Tensor } from "../core/tensor.js";
import type { ParameterGroup } from "../nn/group.js";
import type { Layout } from "../nn/parallel.js";
import type { Work } from "./communicator.js";
import { type StrategyOptions, startReduceScatter } from "./strategy.js";
import { WholeGradients } from "./whole-gradients.js";

/**
 * ZeRO stage 1 (Rajbhandari et al. 2020, arXiv 1910.02054). Every rank holds all weights and
 * gradients, but master weights and moments only of its part of each group. Gradients are averaged
 * to the rank that owns them as soon as a group's backward pass is done. Each rank updates its
 * part, and the new weights are gathered while the next forward pass runs.
 */
export class Zero1 extends WholeGradients {
  readonly layout: Layout;
  /** All-gathers of new weights in progress. */
  readonly #gathers = new Map<ParameterGroup, Work>();

  constructor(options: StrategyOptions) {
    super(options);
    this.layout = { parts: this.world.size, part: this.world.rank, weights: "whole" };
  }

  protected startReduction(group: ParameterGroup): Work {
    return startReduceScatter(this.world, group.gradients, group.ownedGradients, this.reduce);
  }

  sumSquares(squares: Tensor): void {
    this.world.allReduce(squares).wait();
  }

  weightsChanged(group: ParameterGroup): void {
    this.#gathers.set(group, this.world.allGather(group.ownedWeights, group.weights));
  }

  needed(group: ParameterGroup): void {
    this.#gathers.get(group)?.wait();
    this.#gathers.delete(group);
  }

  gather(group: ParameterGroup, owned: Tensor): Tensor {
    return this.gatherOver(this.world, group, owned);
  }
}
