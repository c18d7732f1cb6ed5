import { argumentError, checkInteger, checkNumber } from "../core/check.js";

/** When a step is skipped (FAULTS N1-N5); the decision is made on the device, without waiting for it. */
export interface GuardOptions {
  /** A loss this many standard deviations above the window's mean is a spike; 0: off. */
  zLoss: number;
  /** The same for the gradient norm; 0: off. */
  zGradNorm: number;
  /** Recent applied steps that mean and deviation are taken over. */
  window: number;
  /** Applied steps needed before anything can be a spike. */
  minimumHistory: number;
}

/** Only what is not finite is skipped. */
export const finiteGuard: GuardOptions = {
  zLoss: 0,
  zGradNorm: 0,
  window: 128,
  minimumHistory: 64,
};

/** @throws ArgumentError unless each field is there and in its range */
export function checkGuard(op: string, guard: GuardOptions): void {
  if (typeof guard !== "object" || guard === null) {
    throw argumentError(op, "an object", "guard", guard);
  }
  checkNumber(op, "guard.zLoss", guard.zLoss, { min: 0 });
  checkNumber(op, "guard.zGradNorm", guard.zGradNorm, { min: 0 });
  checkInteger(op, "guard.window", guard.window, { min: 2, max: 65_536 });
  checkInteger(op, "guard.minimumHistory", guard.minimumHistory, { min: 0 });
}

/** Why a step was skipped. */
export type SkipReason =
  | "loss not finite"
  | "gradient not finite"
  | "loss spike"
  | "gradient spike";

const reasons: readonly (SkipReason | null)[] = [
  null,
  "loss not finite",
  "gradient not finite",
  "loss spike",
  "gradient spike",
];

/** What the guard decided about one step. */
export interface StepDecision {
  applied: boolean;
  reason: SkipReason | null;
  /** Global norm of the gradients before clipping. */
  gradNorm: number;
  zLoss: number;
  zGradNorm: number;
}

/** Elements of the decision that `step_guard` writes (csrc/ops/ops.def). */
export const decisionSize = 8;

/** Reads the numbers of a decision tensor. */
export function readDecision(values: ArrayLike<number>): StepDecision {
  if (!Array.isArray(values) && !ArrayBuffer.isView(values)) {
    throw argumentError("readDecision", "the numbers of a decision", "values", values);
  }
  return {
    applied: values[0] === 1,
    reason: reasons[values[7] as number] ?? null,
    gradNorm: values[4] as number,
    zLoss: values[5] as number,
    zGradNorm: values[6] as number,
  };
}

/** Elements of the state: eight counters, then the window of losses and that of gradient norms. */
export function guardStateSize(window: number): number {
  return 8 + 2 * window;
}

/** The counters of the guard's state. */
export interface GuardCounts {
  /** Applied steps. */
  adamSteps: number;
  skipsInARow: number;
  skips: number;
  window: number;
}

/** Counters are f32 and stop here, where adding one no longer changes them. */
export const lastExactCount = 2 ** 24;

/**
 * Reads the guard's state, and checks that it is one that steps can have left: bias correction and every later decision
 * follow from it, so that a wrong counter makes the weights infinite.
 * @param state f32 (8 + 2 * window)
 * @returns the counters, or what is wrong, in words
 */
export function readGuardState(state: Float32Array): GuardCounts | string {
  const window = (state.length - 8) / 2;
  const at = (index: number): number => state[index] as number;
  const names = ["filled", "next", "adam step", "skips in a row", "skips"];
  for (const [index, name] of names.entries()) {
    const value = at(index);
    if (!Number.isInteger(value) || value < 0 || value > lastExactCount) {
      return `element ${index} (${name}) is ${value}, expected a whole number from 0 to 2^24`;
    }
  }
  const [filled, next, adamSteps, skipsInARow, skips] = [0, 1, 2, 3, 4].map(at) as [
    number,
    number,
    number,
    number,
    number,
  ];
  for (const index of [5, 6, 7]) {
    if (at(index) !== 0) return `element ${index} is ${at(index)}, expected 0`;
  }
  const held = Math.min(adamSteps, window);
  if (filled !== held) return `element 0 (filled) is ${filled}, expected ${held}`;
  const place = adamSteps % window;
  if (adamSteps < lastExactCount ? next !== place : next >= window) {
    return `element 1 (next) is ${next}, expected ${place}`;
  }
  if (skipsInARow > skips) {
    return `element 3 (skips in a row) is ${skipsInARow}, above all skips, which are ${skips}`;
  }
  for (let i = 0; i < window; i++) {
    const [loss, norm] = [at(8 + i), at(8 + window + i)];
    const unused = i >= filled;
    if (!Number.isFinite(loss) || (unused && loss !== 0)) {
      return `element ${8 + i} is ${loss}, expected ${unused ? "0" : "a finite loss"}`;
    }
    if (!Number.isFinite(norm) || norm < 0 || (unused && norm !== 0)) {
      const expected = unused ? "0" : "a gradient norm, finite and not negative";
      return `element ${8 + window + i} is ${norm}, expected ${expected}`;
    }
  }
  return { adamSteps, skipsInARow, skips, window };
}
