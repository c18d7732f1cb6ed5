import { checkChoice, checkNumber, checkObject } from "../core/check.js";
import { ArgumentError } from "../core/errors.js";

/** Settings of `cosineSchedule`, in steps. */
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

/** Settings of `wsdSchedule`, in steps. */
export interface WsdSchedule extends CosineSchedule {
  /** Step at which the decay begins. */
  decayFrom: number;
  /**
   * How the rate falls from `peakLr` to `minLr`, with x from 0 to 1 over the decay: `sqrt` as
   * 1 - sqrt(x), `linear` as 1 - x, `cosine` as half a cosine. Default: sqrt.
   */
  decayShape?: DecayShape;
}

/** Shapes of the fall at the end of `wsdSchedule`. */
export type DecayShape = "sqrt" | "linear" | "cosine";

/** The share of the way from `minLr` to `peakLr` that is left at x of the decay. */
const leftAt: Readonly<Record<DecayShape, (x: number) => number>> = {
  sqrt: (x) => 1 - Math.sqrt(x),
  linear: (x) => 1 - x,
  cosine: (x) => 0.5 * (1 + Math.cos(Math.PI * x)),
};

/**
 * Warm-up, stable, decay: linear warm-up, then `peakLr` until `decayFrom`, then a fall to `minLr` at
 * `decaySteps`. A run can go on from any checkpoint of the stable part, with another end. Step 0 has
 * rate 0.
 * @returns a function from a step, counted from 0, to its learning rate
 * @see Hu et al. 2024, arXiv 2404.06395; the shapes: Hägele et al. 2024, arXiv 2405.18392
 */
export function wsdSchedule(options: WsdSchedule): (step: number) => number {
  const op = "wsdSchedule";
  checkObject(op, "options", options);
  const { peakLr, minLr, warmupSteps, decayFrom, decaySteps, decayShape = "sqrt" } = options;
  for (const [name, value] of Object.entries({
    peakLr,
    minLr,
    warmupSteps,
    decayFrom,
    decaySteps,
  })) {
    checkNumber(op, name, value, { min: 0 });
  }
  checkChoice(op, "decayShape", decayShape, ["sqrt", "linear", "cosine"]);
  if (warmupSteps > decayFrom || decayFrom > decaySteps) {
    throw new ArgumentError(
      `[${op}] expected warmupSteps <= decayFrom <= decaySteps, got ${warmupSteps}, ${decayFrom} and ${decaySteps}`,
    );
  }
  return (step) => {
    checkNumber(op, "step", step, { min: 0 });
    if (step < warmupSteps) return (peakLr * step) / warmupSteps;
    if (step < decayFrom) return peakLr;
    if (step >= decaySteps) return minLr;
    const left = leftAt[decayShape]((step - decayFrom) / (decaySteps - decayFrom));
    return minLr + left * (peakLr - minLr);
  };
}
