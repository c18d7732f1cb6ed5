/** Checks of the values that a trainer's parts and callbacks return, which are a caller's own code. */
import { argumentError, checkArray, checkObject } from "../core/check-values.js";
import type { Sample, TaskScore, Validation } from "./metrics.js";

/** Checks the result of `extraMetrics`: a record keeps nothing but numbers. */
export function checkExtra(extra: Record<string, number>): Record<string, number> {
  const [op, name] = ["Trainer", "the result of extraMetrics"];
  if ((extra as unknown) instanceof Promise)
    throw argumentError(op, "numbers by name, not a promise of them,", name, extra);
  checkObject(op, name, extra, "numbers by name");
  for (const [key, value] of Object.entries(extra)) {
    if (typeof value !== "number") throw argumentError(op, "a number", `${key} of ${name}`, value);
  }
  return extra;
}

export function checkValidation(measured: Validation): Validation {
  checkObject("Trainer", "the result of validate.measure", measured);
  if (typeof measured.loss === "number") return measured;
  throw argumentError("Trainer", "a number", "loss of validate.measure", measured.loss);
}

export function checkSamples(samples: Sample[]): Sample[] {
  checkArray("Trainer", "the result of sample.write", samples, "an array of { prompt, text }");
  return samples;
}

export function checkScores(scores: TaskScore[]): TaskScore[] {
  checkArray("Trainer", "the result of score.measure", scores, "an array of { task, value }");
  return scores;
}
