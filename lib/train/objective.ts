/** Objectives: the number that a training step minimises. */
import { checkArray, checkFunction, checkObject } from "../core/check.js";
import type { Tensor } from "../core/tensor.js";
import { type Batch, countTargets, type HostBatch } from "../model/batch.js";
import type { LanguageModel } from "../model/language-model.js";

/** Loss of a micro-batch, and figures beside it. */
export interface Measured {
  /** Mean over the units of the micro-batch, f32 without axes, with a gradient. */
  loss: Tensor;
  /** (figures) f32: means over the same units, without a gradient; null if there are none. */
  figures: Tensor | null;
}

/**
 * The mean over units of the data that a training step minimises. A step weighs each micro-batch by
 * its number of units, over all micro-batches and processes.
 */
export interface Objective {
  /** Names of the figures that `measure` returns. */
  readonly figures: readonly string[];
  /** Number of units in a micro-batch, such as targets or pairs of answers. */
  count(batch: HostBatch): number;
  /**
   * Enqueues the forward pass.
   * @param batch the micro-batch on the model's device
   * @param host  the micro-batch as it was read
   */
  measure(model: LanguageModel, batch: Batch, host: HostBatch): Measured;
  /** Frees what belongs to the objective. A trainer calls it in its own `dispose`. */
  dispose?(): void;
}

/** Mean cross-entropy over the targets that are not ignored: pretraining and fine-tuning. */
export const nextTokens: Objective = {
  figures: [],
  count: ({ targets }) => countTargets(targets),
  measure: (model, batch) => ({ loss: model.loss(batch), figures: null }),
};

/** The figures of an objective by name. */
export function namedFigures(
  { figures }: Objective,
  values: ArrayLike<number>,
): Record<string, number> {
  return Object.fromEntries(figures.map((name, index) => [name, values[index] as number]));
}

/** Checks what a caller gives as objective. @throws ArgumentError naming the part that is wrong */
export function checkObjective(op: string, objective: Objective): void {
  checkObject(op, "objective", objective, "an objective, such as nextTokens");
  checkArray(op, "objective.figures", objective.figures);
  checkFunction(op, "objective.count", objective.count);
  checkFunction(op, "objective.measure", objective.measure);
}
