import type { z } from "zod";
import {
  flag,
  integer,
  integerOrAuto,
  type OptionsSchema,
  path,
  section,
} from "../core/option-kinds.js";

// The only list of the options of an evaluation. `evaluate` and the command line take names,
// ranges, defaults and help from it; a recipe's `evaluate` section takes some of them. Its doc
// comments are those of `EvaluateOptions`.

export const evaluationOptions = {
  /**
   * Folder with the rows of the tasks: `DIR/NAME/SPLIT.jsonl`, `.jsonl.gz` or `.parquet`, in the
   * columns of the Hugging Face Hub. Default: none, for tasks that name their own files.
   */
  data: path("folder with the rows of the tasks: NAME/SPLIT.jsonl, .jsonl.gz or .parquet", {
    standard: "none",
  }).optional(),
  /** Number of questions of each task that are asked, from the first on. Default: all. */
  limit: integer(1, 1e9, "ask only the first questions of each task", {
    standard: "all",
  }).optional(),
  /**
   * Number of solved examples before each question. Tasks whose examples are fixed keep them.
   * Default: each task's own number.
   */
  fewShot: integer(0, 1000, "solved examples before each question", {
    standard: "each task's own number",
  }).optional(),
  /** Seed of the choice of examples and of sampled answers. Default: 1234. */
  seed: integer(
    0,
    Number.MAX_SAFE_INTEGER,
    "of the choice of examples and of sampled answers",
  ).default(1234),
  /**
   * Number of sequences that go through the model at once, or "auto" for as many tokens as the
   * device's memory holds. Scores do not depend on it. Default: "auto".
   */
  batch: integerOrAuto(
    1,
    65_536,
    "sequences that go through the model at once; auto: as the device's memory allows",
  ).default("auto"),
  /** Whether the result has every question with its answers. Default: false. */
  logSamples: flag("add every question with its answers to the result").default(false),
  /**
   * Number of resamples for the standard error of a perplexity; 0 computes no standard errors.
   * Default: 100000.
   */
  bootstrap: integer(
    0,
    10_000_000,
    "resamples for the standard error of a perplexity; 0: no standard errors",
  ).default(100_000),
  /**
   * Whether programs that the model wrote may run. They run in a sandbox without network and files.
   * Default: false.
   */
  allowCodeExecution: flag("let tasks run programs that the model wrote, in a sandbox").default(
    false,
  ),
  /**
   * Whether missing rows are downloaded into `data` from the Hugging Face Hub, which needs the Hub's
   * own package. Default: false.
   */
  download: flag("download missing rows from the Hugging Face Hub into --data").default(false),
};

export const evaluationSchema: OptionsSchema<typeof evaluationOptions> = section(
  "how a model is judged",
  evaluationOptions,
);

/** Options with their defaults filled in. */
export type EvaluationSettings = z.output<typeof evaluationSchema>;
