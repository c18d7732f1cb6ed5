import { z } from "zod";
import { optimizerFile } from "../checkpoint/optimizer.js";
import type { RunConfig } from "../config/index.js";
import { boundedList } from "../core/bounded-list.js";
import { CheckpointError } from "../core/errors.js";
import { type GuardCounts, lastExactCount } from "../optim/guard.js";

/**
 * State of a run in a checkpoint, apart from its tensors: `trainer.json`. Together with the
 * tensors, a resume needs nothing else.
 */
const stateSchema = z.strictObject({
  format: z.literal("llamaforge-trainer"),
  version: z.literal(1),
  /** Number of steps done, including skipped ones. The learning rate follows from it. */
  step: z.int().min(0),
  /** Number of tokens trained on. */
  tokens: z.int().min(0),
  /** Number of windows of the mixture consumed, which is where the data continues. */
  position: z.int().min(0),
  /**
   * Outcomes of the last steps, oldest first: 1 skipped, 0 applied. The guard's limits depend on
   * them.
   */
  skips: z.array(z.union([z.literal(0), z.literal(1)])),
  /** Layers that compute in bf16 again, each with its first such step, counted from 0. */
  fp8Fallbacks: z.array(z.strictObject({ layer: z.int().min(0), from: z.int().min(0) })).optional(),
  /** The resolved configuration, for people and tools that read the checkpoint. */
  config: z.record(z.string(), z.unknown()),
});

export type TrainerState = z.infer<typeof stateSchema>;

export function trainerState(
  progress: Pick<TrainerState, "step" | "tokens" | "position" | "skips" | "fp8Fallbacks">,
  config: RunConfig,
): TrainerState {
  return { format: "llamaforge-trainer", version: 1, ...progress, config: { ...config } };
}

/**
 * Compares the progress recorded in a checkpoint's files. Each file may be whole, but they may be
 * of different steps, or hold numbers that no run can have reached.
 * @param manifestStep step in manifest.json
 * @throws CheckpointError naming the field and its expected value
 */
export function checkTrainerState(
  state: TrainerState,
  manifestStep: number,
  sequenceLength: number,
  source: string,
): void {
  const { step, tokens, position } = state;
  const expect = (holds: boolean, problem: string): void => {
    if (!holds) throw new CheckpointError(`${source}: trainer.json: ${problem}`);
  };
  expect(step === manifestStep, `step is ${step}, that of manifest.json ${manifestStep}`);
  expect(position >= step, `position is ${position}, below one window for each of ${step} steps`);
  const windows = `${position} windows of ${sequenceLength} tokens`;
  expect(tokens === position * sequenceLength, `tokens is ${tokens}, position ${windows}`);
}

/**
 * Compares a checkpoint's progress with the counters in the optimizer's state.
 * @throws CheckpointError naming the field and its expected value
 */
export function checkCounts(state: TrainerState, counts: GuardCounts, source: string): void {
  const { step, skips } = state;
  const expect = (holds: boolean, problem: string): void => {
    if (!holds) throw new CheckpointError(`${source}: trainer.json: ${problem}`);
  };
  const { adamSteps, skipsInARow, window } = counts;
  const exact = adamSteps < lastExactCount && counts.skips < lastExactCount;
  expect(
    !exact || adamSteps + counts.skips === step,
    `step is ${step}, but guard.state of ${optimizerFile} counts ${adamSteps} applied and ` +
      `${counts.skips} skipped`,
  );
  const length = Math.min(step, window);
  expect(skips.length === length, `skips has ${skips.length} entries, expected ${length}`);
  const inARow = skips.length - (skips.lastIndexOf(0) + 1);
  expect(
    inARow === Math.min(skipsInARow, length),
    `skips ends with ${inARow} skipped steps, guard.state of ${optimizerFile} counts ${skipsInARow}`,
  );
}

/** @throws CheckpointError naming each field that is wrong */
export function parseTrainerState(value: unknown, source: string): TrainerState {
  const parsed = stateSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  const problems = parsed.error.issues.map(
    ({ path, message }) => `  ${path.join(".")}: ${message}`,
  );
  throw new CheckpointError(`${source}: not the state of a trainer:\n${boundedList(problems)}`);
}
