import { argumentError, checkInteger, checkNumber } from "../core/check.js";

/**
 * Rules for skipping a step (FAULTS N1-N5). The device itself decides, so the host does not wait
 * for the decision.
 */
export interface GuardOptions {
  /**
   * A loss this many standard deviations above the window's mean is a spike; 0 disables the rule.
   */
  zLoss: number;
  /**
   * A gradient norm this many standard deviations above the window's mean is a spike; 0 disables
   * the rule.
   */
  zGradNorm: number;
  /** Number of recent applied steps over which mean and deviation are taken. */
  window: number;
  /** Number of applied steps needed before any step can be a spike. */
  minimumHistory: number;
}

/** A guard that only skips steps with non-finite values. */
export const finiteGuard: GuardOptions = {
  zLoss: 0,
  zGradNorm: 0,
  window: 128,
  minimumHistory: 64,
};

/** @throws ArgumentError unless every field is present and in its range */
export function checkGuard(op: string, guard: GuardOptions): void {
  if (typeof guard !== "object" || guard === null) {
    throw argumentError(op, "an object", "guard", guard);
  }
  checkNumber(op, "guard.zLoss", guard.zLoss, { min: 0 });
  checkNumber(op, "guard.zGradNorm", guard.zGradNorm, { min: 0 });
  checkInteger(op, "guard.window", guard.window, { min: 2, max: 65_536 });
  checkInteger(op, "guard.minimumHistory", guard.minimumHistory, { min: 0 });
}

/** Reason for skipping a step. */
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

/** The guard's decision about one step. */
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

/**
 * Number of elements of the guard's state: eight counters, then the windows of losses and of
 * gradient norms.
 */
export function guardStateSize(window: number): number {
  return 8 + 2 * window;
}

/** Counters in the guard's state. */
export interface GuardCounts {
  /** Number of applied steps. */
  adamSteps: number;
  skipsInARow: number;
  skips: number;
  window: number;
}

/** Largest value of the f32 counters, above which adding one no longer changes them. */
export const lastExactCount = 2 ** 24;

/**
 * Reads the guard's state and checks that real steps can have produced it. Bias correction and
 * every later decision depend on it, and a wrong counter would make the weights infinite.
 * @param state f32 (8 + 2 * window)
 * @returns the counters, or a description of the fault
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
