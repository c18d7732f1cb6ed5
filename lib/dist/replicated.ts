import type { ParameterGroup } from "../nn/group.js";
import { type Layout, undivided } from "../nn/parallel.js";
import type { Tensor } from "../tensor.js";
import { Reductions, Strategy, type StrategyOptions, startAllReduce } from "./strategy.js";

/**
 * Every rank has the whole model. A group's gradients are averaged as soon as its backward pass is done, beside the
 * backward pass of the groups before it; of the micro-batches of one step only on the last, for their gradients add up.
 */
export class Replicated extends Strategy {
  readonly layout: Layout = undivided;
  readonly #reductions: Reductions;

  constructor(options: StrategyOptions) {
    super(options);
    this.#reductions = new Reductions((group) =>
      startAllReduce(this.world, group.gradients, this.reduce),
    );
  }

  beginMicroBatch(last: boolean): void {
    this.#reductions.begin(last);
  }

  gradientNeeded(group: ParameterGroup): void {
    this.#reductions.check(group);
  }

  gradientsComplete(group: ParameterGroup): void {
    this.#reductions.complete(group);
  }

  finishGradients(): void {
    this.#reductions.finish(this.groups);
  }

  needed(): void {}
  /** Every rank has summed the same gradients. */
  sumSquares(): void {}
  weightsChanged(): void {}

  gather(group: ParameterGroup, owned: Tensor): Tensor {
    return owned.view([group.size]);
  }
}
