import { argumentError, checkInteger, checkNumber } from "../check.js";

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
