// What both programs of this folder take for granted.

/** "a=0.7,b=0.3" as { a: 0.7, b: 0.3 }. */
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
  accumulation: 2,
  sequenceLength: 2048,
  peakLr: 4e-4,
  minLr: 4e-5,
  warmupSteps: 30,
  beta1: 0.9,
  beta2: 0.95,
  eps: 1e-8,
  weightDecay: 0.1,
  clip: 1,
};
