import { z } from "zod";
import { boundedList } from "../bounded-list.js";
import { CheckpointError } from "../errors.js";
import type { RunConfig } from "./config.js";

/** What a checkpoint says of the run beside its tensors: `trainer.json`. With the tensors it is all that a resume needs. */
const stateSchema = z.strictObject({
  format: z.literal("llamaforge-trainer"),
  version: z.literal(1),
  /** Steps done, skipped ones included; the learning rate follows from it. */
  step: z.int().min(0),
  /** Tokens trained on. */
  tokens: z.int().min(0),
  /** Windows of the mixture consumed: where the data goes on. */
  position: z.int().min(0),
  /** The last steps' outcomes, oldest first: 1 skipped, 0 applied. The limits of the guard look at them. */
  skips: z.array(z.union([z.literal(0), z.literal(1)])),
  /** The resolved configuration, for people and tools that read the checkpoint. */
  config: z.record(z.string(), z.unknown()),
});

export type TrainerState = z.infer<typeof stateSchema>;

export function trainerState(
  progress: Pick<TrainerState, "step" | "tokens" | "position" | "skips">,
  config: RunConfig,
): TrainerState {
  return { format: "llamaforge-trainer", version: 1, ...progress, config: { ...config } };
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
