import { AutogradError } from "../core/errors.js";
import type { Arrival, SharedGroup } from "./exchange.js";
import { Schedule } from "./strategy.js";

/**
 * Base of the strategies whose ranks hold all gradients. A group's gradients are reduced as soon as
 * its backward pass is done, overlapping with the backward pass of the groups before it. Of a
 * step's micro-batches only the last one reduces, because their gradients add up.
 */
export abstract class WholeGradients<Group extends SharedGroup, Data> extends Schedule<
  Group,
  Data
> {
  readonly #started = new Map<Group, Arrival>();
  #last = false;

  /** Starts the reduction of a group's gradients. */
  protected abstract startReduction(group: Group): Arrival;

  /** Prepares for a micro-batch. @param last whether its gradients complete the step's */
  beginMicroBatch(last: boolean): void {
    this.#last = last;
  }

  /**
   * @throws AutogradError if the group has been reduced already: the sum would miss the new
   *   gradient
   */
  gradientNeeded(group: Group): void {
    if (!this.#started.has(group)) return;
    throw new AutogradError(
      `[parallel] a gradient of ${group.name} came after the group's gradients had been given to the other ranks: ` +
        "a part of the model is computed again in backward on its own; make it a group of its own (parameterGroups)",
    );
  }

  /** Called when a group's gradients of a micro-batch are whole. */
  gradientsComplete(group: Group): void {
    if (!this.#last) return;
    group.completeGradients();
    this.#started.set(group, this.startReduction(group));
  }

  /**
   * Reduces the groups that backward did not reach, and orders later operations after all
   * reductions.
   */
  finishGradients(): void {
    this.#last = true;
    for (const group of this.groups) if (!this.#started.has(group)) this.gradientsComplete(group);
    for (const arrival of this.#started.values()) arrival.wait();
    this.#started.clear();
    this.#last = false;
  }
}
