// Settings that both programs of this folder share.

/** Parses "a=0.7,b=0.3" into { a: 0.7, b: 0.3 }. */
export function parseSources(text) {
  return Object.fromEntries(
    text.split(",").map((part) => {
      const [folder, weight = "1"] = part.split("=");
      return [folder, Number(weight)];
    }),
  );
}

export const run = {
  preset: "tinyllama-120m",
  seed: 3407,
  steps: 300,
  microBatch: 4,
  accumulation: 4,
  sequenceLength: 2048,
  peakLr: 4e-4,
  minLr: 4e-5,
  // The schedule is the beginning of the recipe's (configs/tinyllama-120m.yaml). A warm-up of 30
  // steps with 16,384 tokens each made both runs unstable (gradient norms of 20). Rounding then
  // decides how a curve develops: the curves were equal to 1e-4 for 10 steps, and apart by 0.03 on
  // average over 300.
  warmupSteps: 500,
  decaySteps: 9155,
  beta1: 0.9,
  beta2: 0.95,
  eps: 1e-8,
  weightDecay: 0.1,
  clip: 1,
};
