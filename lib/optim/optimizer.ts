import type { Tensor } from "../core/tensor.js";

/** What an optimizer's step returns, on the device. */
export interface StepResult {
  /** Global norm of the gradients before clipping, f32, one element without axes. */
  gradNorm: Tensor;
  /** The guard's decision, f32 (8); see `readDecision`. */
  decision: Tensor;
}

/** What a training step needs of an optimizer. `AdamW` is one. */
export interface Optimizer {
  /**
   * Updates the weights from their gradients, and forgets those.
   * @param options `lr`: learning rate of this step; `clip`: largest global norm of the gradients; `loss`: the step's mean
   *   loss, f32 with one element, for the guard
   */
  step(options: { lr: number; clip?: number; loss?: Tensor }): StepResult;
  /** Frees the optimizer's state. */
  dispose(): void;
}
