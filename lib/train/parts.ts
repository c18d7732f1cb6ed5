/** The parts that a Trainer works with. `Trainer.create(config)` builds them from a recipe; anybody may build others. */
import type { RunConfig } from "../config/index.js";
import {
  checkBoolean,
  checkFunction,
  checkInstance,
  checkInteger,
  checkNumber,
  checkObject,
  checkOptions,
} from "../core/check.js";
import type { ShardCheck } from "../data/shard-check.js";
import type { Tokenizer } from "../data/tokenizer.js";
import type { Cluster } from "../dist/cluster.js";
import type { HostBatch } from "../model/batch.js";
import { LanguageModel } from "../model/language-model.js";
import type { Optimizer } from "../optim/optimizer.js";
import type { Canary } from "./canary.js";
import type { Sample, StepMetrics, Validation } from "./metrics.js";
import type { SkipLimits } from "./skips.js";

/** Where micro-batches come from. A `Loader` is one. */
export interface BatchSource {
  next(): Promise<HostBatch>;
  /** Milliseconds of the main thread that reading has taken, in all. */
  readonly hostMs?: number;
}

/** How far a run has come. */
export interface Progress {
  /** Steps done, skipped ones included. */
  step: number;
  tokens: number;
  /** Windows of the data consumed by all processes. */
  position: number;
  /** The last steps' outcomes, oldest first: 1 skipped, 0 applied. */
  skips: readonly (0 | 1)[];
}

/** Writes checkpoints. */
export interface Saver {
  /** Steps between saves; 0: only when the run ends. */
  readonly every: number;
  /** Folder of the last checkpoint; null before the first. */
  readonly checkpoint: string | null;
  /** Why nothing can be saved any more; it ends the run. */
  readonly failure: Error | null;
  /**
   * Saves the state; may return while the files are still being written.
   * @param validation loss on held-out documents, if it was measured at this step
   * @throws DivergedError for a state that nothing can go on from: the run ends with it
   */
  save(progress: Progress, validation: number | null): Promise<void>;
  /** Waits for a save that is being written. */
  finish(): Promise<void>;
}

/** Keeps the steps' records. */
export interface StepRecords {
  /** Why nothing can be recorded any more; it ends the run. */
  readonly moved: Error | null;
  write(metrics: StepMetrics): void;
  /** Replaces the last record, after validation or samples. */
  amend(metrics: StepMetrics): void;
}

/** The run's recipe and what it names; null for a trainer of other parts. */
export interface RecipeParts {
  config: RunConfig;
  tokenizer: Tokenizer;
  /** Device that the run computes on, as the report names it. */
  deviceName: string;
}

export interface TrainerParts {
  model: LanguageModel;
  optimizer: Optimizer;
  batches: BatchSource;
  /** Learning rate of a step; the first is 0. */
  schedule: (step: number) => number;
  /** Steps in all. */
  steps: number;
  /** Micro-batches of a step (1). */
  accumulation?: number;
  /** Largest global norm of the gradients (1); 0: no clipping. */
  clip?: number;
  /** Whether targets may be -100 although several processes train together (false). */
  masked?: boolean;
  /** How many skipped steps end the run (none). */
  guard?: SkipLimits;
  /** Where the run goes on from (the beginning). */
  progress?: Progress;
  /** Held-out loss, every so many steps and after the last; 0: only then. */
  validate?: { every: number; measure: (step: number) => Promise<Validation> };
  /** Sample texts, every so many steps and after the last; 0: only then. */
  sample?: { every: number; write: (step: number) => Promise<Sample[]> };
  saver?: Saver;
  records?: StepRecords | null;
  /** The processes that train together. */
  cluster?: Cluster | null;
  /** Looks for silent corruption. */
  canary?: Canary;
  /** Hashes the data in the background; a difference ends the run. */
  shardCheck?: ShardCheck | null;
  /** Figures of one's own, recorded as `extra` with each step. */
  extraMetrics?: (step: number) => Record<string, number>;
  /** Called with each step's record before `run()` yields it; waited for. */
  onStep?: (metrics: StepMetrics) => unknown;
  /** Called with each measured validation; waited for. */
  onValidation?: (validation: Validation, step: number) => unknown;
  /** Called when a checkpoint is complete on disk. */
  onCheckpoint?: (folder: string, step: number) => unknown;
  /** Ends the run as `stop()` does: after the running step, with a save. */
  signal?: AbortSignal;
  /** Things worth telling the user that are not errors. */
  onNotice?: (message: string) => void;
  recipe?: RecipeParts;
  /** Called when the run has ended, however it did. */
  close?: () => Promise<void>;
}

const names = [
  "model",
  "optimizer",
  "batches",
  "schedule",
  "steps",
  "accumulation",
  "clip",
  "masked",
  "guard",
  "progress",
  "validate",
  "sample",
  "saver",
  "records",
  "cluster",
  "canary",
  "shardCheck",
  "extraMetrics",
  "onStep",
  "onValidation",
  "onCheckpoint",
  "signal",
  "onNotice",
  "recipe",
  "close",
] as const satisfies (keyof TrainerParts)[];

/** @throws ArgumentError naming the part that does not fit */
export function checkParts(parts: TrainerParts): void {
  const op = "Trainer";
  checkObject(op, "parts", parts, "the parts of a trainer");
  checkOptions(op, parts, names);
  const { model, optimizer, batches, schedule, steps, validate, sample, saver, signal } = parts;
  checkInstance(op, "model", model, LanguageModel, "a language model");
  checkObject(op, "optimizer", optimizer, "an optimizer, such as AdamW");
  checkFunction(op, "optimizer.step", optimizer.step);
  checkObject(op, "batches", batches, "a source of batches, such as a Loader");
  checkFunction(op, "batches.next", batches.next);
  checkFunction(op, "schedule", schedule);
  checkInteger(op, "steps", steps, { min: 1 });
  checkInteger(op, "accumulation", parts.accumulation ?? 1, { min: 1, max: 2 ** 31 });
  checkNumber(op, "clip", parts.clip ?? 1, { min: 0 });
  checkBoolean(op, "masked", parts.masked ?? false);
  for (const name of ["guard", "progress"] as const) {
    if (parts[name] !== undefined) checkObject(op, name, parts[name]);
  }
  if (validate !== undefined) {
    checkObject(op, "validate", validate);
    checkInteger(op, "validate.every", validate.every, { min: 0 });
    checkFunction(op, "validate.measure", validate.measure);
  }
  if (sample !== undefined) {
    checkObject(op, "sample", sample);
    checkInteger(op, "sample.every", sample.every, { min: 0 });
    checkFunction(op, "sample.write", sample.write);
  }
  if (saver !== undefined) {
    checkObject(op, "saver", saver);
    checkInteger(op, "saver.every", saver.every, { min: 0 });
    checkFunction(op, "saver.save", saver.save);
    checkFunction(op, "saver.finish", saver.finish);
  }
  if (signal !== undefined) checkInstance(op, "signal", signal, AbortSignal, "an AbortSignal");
  for (const name of [
    "extraMetrics",
    "onStep",
    "onValidation",
    "onCheckpoint",
    "onNotice",
    "close",
  ] as const) {
    if (parts[name] !== undefined) checkFunction(op, name, parts[name]);
  }
}
