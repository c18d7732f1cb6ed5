import { checkNumber, checkObject } from "../core/check.js";
import { ArgumentError } from "../core/errors.js";

export interface CosineSchedule {
  peakLr: number;
  /** Learning rate at the end of the decay and after it. */
  minLr: number;
  /** Number of steps of linear warm-up from 0. */
  warmupSteps: number;
  /** Step at which the cosine reaches `minLr`. */
  decaySteps: number;
}

/**
 * Linear warm-up, then half a cosine from `peakLr` to `minLr`, like TinyLlama. Step 0 has rate 0.
 * @returns a function from a step, counted from 0, to its learning rate
 */
export function cosineSchedule(options: CosineSchedule): (step: number) => number {
  checkObject("cosineSchedule", "options", options);
  const { peakLr, minLr, warmupSteps, decaySteps } = options;
  for (const [name, value] of Object.entries({ peakLr, minLr, warmupSteps, decaySteps })) {
    checkNumber("cosineSchedule", name, value, { min: 0 });
  }
  if (warmupSteps > decaySteps) {
    throw new ArgumentError(
      `[cosineSchedule] warmupSteps ${warmupSteps} must not be above decaySteps ${decaySteps}`,
    );
  }
  return (step) => {
    checkNumber("cosineSchedule", "step", step, { min: 0 });
    if (step < warmupSteps) return (peakLr * step) / warmupSteps;
    if (step >= decaySteps) return minLr;
    const progress = (step - warmupSteps) / (decaySteps - warmupSteps);
    return minLr + 0.5 * (1 + Math.cos(Math.PI * progress)) * (peakLr - minLr);
  };
}
