import type { Tensor } from "../core/tensor.js";
import type { ParameterGroup } from "../nn/group.js";
import { type Layout, undivided } from "../nn/parallel.js";
import type { Work } from "./communicator.js";
import { startAllReduce } from "./strategy.js";
import { WholeGradients } from "./whole-gradients.js";

/** Every rank holds the whole model, and gradients are averaged over all ranks. */
export class Replicated extends WholeGradients {
  readonly layout: Layout = undivided;

  protected startReduction(group: ParameterGroup): Work {
    return startAllReduce(this.world, group.gradients, this.reduce);
  }

  needed(): void {}
  /** Does nothing: every rank has summed the same gradients. */
  sumSquares(): void {}
  weightsChanged(): void {}

  gather(group: ParameterGroup, owned: Tensor): Tensor {
    return owned.view([group.size]);
  }
}
