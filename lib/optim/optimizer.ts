import { checkFunction, checkObject } from "../core/check.js";
import { ArgumentError } from "../core/errors.js";
import type { Tensor } from "../core/tensor.js";
import type { ParameterStore } from "../nn/store.js";

/** Result of an optimizer's step, on the device. */
export interface StepResult {
  /** Global norm of the gradients before clipping, f32, one element without axes. */
  gradNorm: Tensor;
  /** The guard's decision, f32 (8); see `readDecision`. */
  decision: Tensor;
}

/** The part of an optimizer that a training step uses. `AdamW` is an `Optimizer`. */
export interface Optimizer {
  /** The parameters that it updates; a trainer checks that they are those of its model. */
  readonly store?: ParameterStore;
  /**
   * Updates the weights from their gradients, and forgets those.
   * @param options `lr`: learning rate of this step; `clip`: largest global norm of the gradients; `loss`: the step's mean
   *   loss, f32 with one element, for the guard
   */
  step(options: { lr: number; clip?: number; loss?: Tensor }): StepResult;
  /** Frees the optimizer's state. */
  dispose(): void;
}

/**
 * Checks an optimizer, and that it updates the parameters of this store.
 * @throws ArgumentError otherwise
 */
export function checkOptimizer(op: string, optimizer: Optimizer, store: ParameterStore): void {
  checkObject(op, "optimizer", optimizer, "an optimizer, such as AdamW");
  checkFunction(op, "optimizer.step", optimizer.step);
  if (optimizer.store === undefined || optimizer.store === store) return;
  throw new ArgumentError(
    `[${op}] expected an optimizer of this model for optimizer but received one of another model: ` +
      "it would leave this model's weights as they are",
  );
}
