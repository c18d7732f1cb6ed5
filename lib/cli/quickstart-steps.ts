/**
 * How many steps the quickstart trains: as many as a machine of this speed takes in a stated time.
 */
import type { LoadedConfig } from "../config/resolve.js";
import { parseDevice } from "../core/device.js";

/** Few steps teach the model nothing; many repeat the quickstart's small texts. */
const fewest = 40;
const most = 4000;

/** Steps before and after the first timed one. The first step of a process warms up its caches. */
const warmup = 2;
const timed = 10;

/** Share of a run that its validation, samples, saves and report take. */
const besides = 0.12;

/**
 * Trains a few steps on random words with the recipe's model and batch, and forgets them.
 * @returns the seconds of a step, as the median of those timed
 */
export async function measureStepSeconds(asked: LoadedConfig): Promise<number> {
  // Loaded lazily: these modules load the addon.
  const { decidePrecision } = await import("../config/precision.js");
  const { BareLoop } = await import("../bench/bare-loop.js");
  const { median } = await import("../bench/environment.js");
  const { openTokens } = await import("../bench/tokens.js");
  const { shareThreads } = await import("../train/join.js");
  const { batch, data, device, model, precision, recompute, threads } = decidePrecision(
    asked,
    null,
  );
  if (threads !== undefined) shareThreads({ threads }, null);
  const place = parseDevice(device);
  const tokens = await openTokens(undefined, model.vocabSize, data.sequenceLength);
  const loader = tokens.open(batch.microBatch);
  const loop = await BareLoop.create({ model, device: place, precision, recompute });
  try {
    const batches = [];
    while (batches.length < batch.accumulation) batches.push(await loader.next());
    const steps = await loop.steps(batches, warmup, timed);
    return median(steps.map(({ ms }) => ms)) / 1000;
  } finally {
    loop.dispose();
    await loader.close();
    await tokens.close();
  }
}

/** Number of steps that fit into a time, at least 40 and at most 4,000. */
export function stepsWithin(seconds: number, stepSeconds: number): number {
  const fitting = Math.floor((seconds * (1 - besides)) / stepSeconds);
  // Round numbers are easier to compare: 1230 instead of 1233.
  const rounded = fitting > 100 ? fitting - (fitting % 10) : fitting;
  return Math.min(most, Math.max(fewest, rounded));
}

/** Seconds of a run of so many steps, with its validation, samples and saves. */
export function secondsOf(steps: number, stepSeconds: number): number {
  return (steps * stepSeconds) / (1 - besides);
}

/**
 * Overrides of the recipe that belong to a number of steps: warm-up, validation, samples and
 * checkpoints in proportion.
 */
export function overridesFor(steps: number): string[] {
  const share = (part: number): number => Math.max(1, Math.ceil(steps * part));
  return [
    `steps=${steps}`,
    `optimizer.warmupSteps=${Math.min(share(0.07), steps - 1)}`,
    `evaluate.every=${share(0.25)}`,
    `sample.every=${share(0.5)}`,
    `checkpoint.every=${share(0.5)}`,
  ];
}
