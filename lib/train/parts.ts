/**
 * The parts of a Trainer. `Trainer.create(config)` builds them from a recipe; programs may build
 * their own.
 */
import type { RunConfig } from "../config/index.js";
import {
  checkArray,
  checkBoolean,
  checkFunction,
  checkInstance,
  checkInteger,
  checkNumber,
  checkObject,
  checkOptions,
} from "../core/check.js";
import { ShardCheck } from "../data/shard-check.js";
import type { Tokenizer } from "../data/tokenizer.js";
import { Cluster } from "../dist/cluster.js";
import type { HostBatch } from "../model/batch.js";
import type { Fp8Fallback } from "../model/fp8-monitor.js";
import { LanguageModel } from "../model/language-model.js";
import { checkOptimizer, type Optimizer } from "../optim/optimizer.js";
import { Canary } from "./canary.js";
import type { Sample, StepMetrics, TaskScore, Validation } from "./metrics.js";
import { checkObjective, type Objective } from "./objective.js";
import type { SkipLimits } from "./skips.js";

/** A source of micro-batches, such as a `Loader`. */
export interface BatchSource {
  /**
   * The next micro-batch. A step reads all its micro-batches before it computes on the first, so
   * each needs arrays of its own.
   */
  next(): Promise<HostBatch>;
  /** Total main-thread time of reading, in milliseconds. */
  readonly hostMs?: number;
}

/** Progress of a run. */
export interface Progress {
  /** Number of completed steps, including skipped ones. */
  step: number;
  tokens: number;
  /** Windows of the data consumed by all processes. */
  position: number;
  /** Outcomes of the last steps, oldest first: 1 skipped, 0 applied. */
  skips: readonly (0 | 1)[];
  /** Layers that compute in bf16 again although the run is in fp8. Default: none. */
  fp8Fallbacks?: readonly Fp8Fallback[];
}

/** Writes checkpoints. */
export interface Saver {
  /** Steps between saves; 0: only when the run ends. */
  readonly every: number;
  /** Folder of the last checkpoint; null before the first. */
  readonly checkpoint: string | null;
  /** The reason why nothing can be saved any more; it ends the run. */
  readonly failure: Error | null;
  /**
   * Saves the state. It may return while the files are still being written.
   * @param validation loss on held-out documents, if it was measured at this step
   * @throws DivergedError for a state from which training cannot continue; the error ends the run
   */
  save(progress: Progress, validation: number | null): Promise<void>;
  /** Waits for a save in progress. */
  finish(): Promise<void>;
}

/** Keeps a record of each step. */
export interface StepRecords {
  /** The reason why nothing can be recorded any more; it ends the run. */
  readonly moved: Error | null;
  /** Adds a step's record. Returns at once. */
  write(metrics: StepMetrics): void;
  /** Replaces the last record, after validation, samples or task scores. */
  amend(metrics: StepMetrics): void;
}

/** The run's recipe and its tokenizer and device; null for a trainer made of custom parts. */
export interface RecipeParts {
  config: RunConfig;
  tokenizer: Tokenizer;
  /** Device that the run computes on, as the report names it. */
  deviceName: string;
}

/** The parts of a trainer, for runs that no recipe describes. */
export interface TrainerParts {
  model: LanguageModel;
  optimizer: Optimizer;
  batches: BatchSource;
  /** Learning rate of a step; the first is 0. */
  schedule: (step: number) => number;
  /** Number of steps of the whole run. */
  steps: number;
  /** Micro-batches per step. Default: 1. */
  accumulation?: number;
  /** Largest global norm of the gradients; 0 disables clipping. Default: 1. */
  clip?: number;
  /** The objective that the steps minimise. Default: `nextTokens`, the mean loss over targets. */
  objective?: Objective;
  /** Whether targets may be -100 when several processes train together. Default: false. */
  masked?: boolean;
  /** Limits on skipped steps that end the run. Default: no limits. */
  guard?: SkipLimits;
  /** Progress that the run resumes from. Default: the beginning. */
  progress?: Progress;
  /**
   * Validation: `measure` runs every `every` steps and after the last step. 0: only after the last.
   */
  validate?: {
    every: number;
    /** The held-out loss after a step. */
    measure: (step: number) => Promise<Validation>;
  };
  /**
   * Sample texts: `write` runs every `every` steps and after the last step. 0: only after the last.
   */
  sample?: {
    every: number;
    /** Texts of the model after a step. */
    write: (step: number) => Promise<Sample[]>;
  };
  /**
   * Scores on tasks: `measure` runs every `every` steps and after the last step. 0: only after the
   * last. It calls `failed` for tasks that it has to leave out.
   */
  score?: {
    every: number;
    /** The scores after a step. */
    measure: (step: number, failed: (task: string, error: unknown) => void) => Promise<TaskScore[]>;
  };
  saver?: Saver;
  records?: StepRecords | null;
  /**
   * The processes that train together. `run()` closes it at its end. Sharded weights can be saved
   * only before that, by a saver.
   */
  cluster?: Cluster | null;
  /** Looks for silent corruption. */
  canary?: Canary;
  /** Hashes the data in the background. A mismatch ends the run. */
  shardCheck?: ShardCheck | null;
  /** Custom figures, recorded as `extra` with each step. */
  extraMetrics?: (step: number) => Record<string, number>;
  /** Called with each step's record before `run()` yields it, and awaited. */
  onStep?: (metrics: StepMetrics) => unknown;
  /** Called with each measured validation, and awaited. */
  onValidation?: (validation: Validation, step: number) => unknown;
  /** Ends the run as `stop()` does: after the running step, with a save. */
  signal?: AbortSignal;
  /**
   * Called with notes for the user that are not errors, such as the reason why a validation failed.
   * Default: prints to the console.
   */
  onNotice?: (message: string) => void;
  recipe?: RecipeParts;
  /** Called when the run has ended, for any reason. */
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
  "objective",
  "masked",
  "guard",
  "progress",
  "validate",
  "sample",
  "score",
  "saver",
  "records",
  "cluster",
  "canary",
  "shardCheck",
  "extraMetrics",
  "onStep",
  "onValidation",
  "signal",
  "onNotice",
  "recipe",
  "close",
] as const satisfies (keyof TrainerParts)[];

/** Checks the parts of a trainer. @throws ArgumentError naming the invalid part */
export function checkParts(parts: TrainerParts): void {
  const op = "Trainer";
  checkObject(op, "parts", parts, "the parts of a trainer");
  checkOptions(op, parts, names);
  const { model, optimizer, batches, schedule, steps, validate, sample, score, saver, signal } =
    parts;
  checkInstance(op, "model", model, LanguageModel, "a language model");
  checkOptimizer(op, optimizer, model.store);
  checkObject(op, "batches", batches, "a source of batches, such as a Loader");
  checkFunction(op, "batches.next", batches.next);
  checkFunction(op, "schedule", schedule);
  checkInteger(op, "steps", steps, { min: 1 });
  checkInteger(op, "accumulation", parts.accumulation ?? 1, { min: 1, max: 2 ** 31 });
  checkNumber(op, "clip", parts.clip ?? 1, { min: 0 });
  if (parts.objective !== undefined) checkObjective(op, parts.objective);
  checkBoolean(op, "masked", parts.masked ?? false);
  checkProgress(op, parts);
  checkLimits(op, parts);
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
  if (score !== undefined) {
    checkObject(op, "score", score);
    checkInteger(op, "score.every", score.every, { min: 0 });
    checkFunction(op, "score.measure", score.measure);
  }
  if (saver !== undefined) {
    checkObject(op, "saver", saver);
    checkInteger(op, "saver.every", saver.every, { min: 0 });
    checkFunction(op, "saver.save", saver.save);
    checkFunction(op, "saver.finish", saver.finish);
  }
  const { records = null, cluster = null, canary, shardCheck = null } = parts;
  if (records !== null) {
    checkObject(op, "records", records);
    checkFunction(op, "records.write", records.write);
    checkFunction(op, "records.amend", records.amend);
  }
  if (cluster !== null) checkInstance(op, "cluster", cluster, Cluster, "a Cluster");
  if (canary !== undefined) checkInstance(op, "canary", canary, Canary, "a canary");
  if (shardCheck !== null)
    checkInstance(op, "shardCheck", shardCheck, ShardCheck, "a check of the shards");
  if (signal !== undefined) checkInstance(op, "signal", signal, AbortSignal, "an AbortSignal");
  for (const name of ["extraMetrics", "onStep", "onValidation", "onNotice", "close"] as const) {
    if (parts[name] !== undefined) checkFunction(op, name, parts[name]);
  }
}

function checkProgress(op: string, { progress }: TrainerParts): void {
  if (progress === undefined) return;
  checkObject(op, "progress", progress);
  for (const name of ["step", "tokens", "position"] as const) {
    checkInteger(op, `progress.${name}`, progress[name], { min: 0 });
  }
  checkArray(op, "progress.skips", progress.skips);
  for (const skip of progress.skips) checkInteger(op, "progress.skips", skip, { min: 0, max: 1 });
  checkArray(op, "progress.fp8Fallbacks", progress.fp8Fallbacks ?? []);
  for (const { layer, from } of progress.fp8Fallbacks ?? []) {
    checkInteger(op, "layer of progress.fp8Fallbacks", layer, { min: 0 });
    checkInteger(op, "from of progress.fp8Fallbacks", from, { min: 0 });
  }
}

function checkLimits(op: string, { guard }: TrainerParts): void {
  if (guard === undefined) return;
  checkObject(op, "guard", guard);
  checkInteger(op, "guard.window", guard.window, { min: 1 });
  for (const name of ["maxConsecutiveSkips", "maxSkipsPerWindow"] as const) {
    // Infinity is no limit.
    const limit: unknown = guard[name];
    if (limit !== Number.POSITIVE_INFINITY) checkInteger(op, `guard.${name}`, limit, { min: 0 });
  }
}
