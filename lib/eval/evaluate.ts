import type { z } from "zod";
import { checkFunction, checkInstance, checkIntegers, checkObject } from "../core/check.js";
import { ArgumentError, DataError } from "../core/errors.js";
import { buildInfo } from "../core/native.js";
import { optionName } from "../core/option-names.js";
import { checkOptionsBy } from "../core/option-problems.js";
import { Tokenizer } from "../data/tokenizer.js";
import { LanguageModel } from "../model/language-model.js";
import { agreed, onFirst } from "./agree.js";
import type { TaskSelection } from "./check-task.js";
import { makeQuestions, type TaskQuestions } from "./questions.js";
import { selectTasks } from "./registry.js";
import { assembleResults, type EvaluationResults, type FinishedTask } from "./results.js";
import { TaskRows } from "./rows.js";
import { type EvaluationProgress, runTasks } from "./run-tasks.js";
import { Sandbox } from "./sandbox.js";
import { type EvaluationSettings, evaluationSchema } from "./schema.js";
import { Scorer } from "./scorer.js";
import type { RunPrograms, Task } from "./task.js";
import type { EvalWorld } from "./world.js";

/** Options of an evaluation. */
export interface EvaluateOptions extends z.input<typeof evaluationSchema> {
  /** The model's tokenizer. */
  tokenizer: Tokenizer;
  /**
   * Ids that end an answer beside the tokenizer's end-of-text token, such as the end of a chat's
   * turn: those of the model's `generation_config.json` (`endTokens`). Default: none.
   */
  endTokens?: readonly number[];
  /** Ends the evaluation between two batches, with the signal's reason. Default: none. */
  signal?: AbortSignal;
  /** Called as requests are done. Default: none. */
  onProgress?: (progress: EvaluationProgress) => void;
}

/**
 * Scores a model on tasks. The scores equal lm-evaluation-harness 0.4.13's on the same model and
 * rows, and the result has the layout of its results files.
 *
 *     const tokenizer = await Tokenizer.load(folder);
 *     const { results } = await evaluate(model, "arc_easy", { tokenizer, data: "evaldata" });
 *     console.log(results.arc_easy["acc_norm,none"]);
 *
 * @param tasks names of tasks and groups, paths of YAML files of the harness, and tasks of the
 *   caller's own; see docs/evaluation.md
 * @throws ArgumentError for unknown tasks and wrong options
 * @throws DataError naming the rows that are missing, or the file and row that is wrong
 * @throws TokenizerError if the tokenizer does not fit the model
 */
export async function evaluate(
  model: LanguageModel,
  tasks: string | Task | readonly (string | Task)[],
  options: EvaluateOptions,
): Promise<EvaluationResults> {
  const op = "evaluate";
  checkInstance(op, "model", model, LanguageModel, "a language model");
  checkObject(op, "options", options);
  const { tokenizer, signal, onProgress, endTokens = [], ...given } = options;
  checkInstance(op, "tokenizer", tokenizer, Tokenizer, "a tokenizer");
  checkIntegers(op, "endTokens", endTokens, "an array of token ids");
  if (signal !== undefined) checkInstance(op, "signal", signal, AbortSignal, "an AbortSignal");
  if (onProgress !== undefined) checkFunction(op, "onProgress", onProgress);
  const settings = checkOptionsBy(op, evaluationSchema, given);
  const selection = await selectTasks(tasks);
  const run = { model, tokenizer, endTokens, selection, settings, signal, onProgress };
  return await runEvaluation(run);
}

/** An evaluation whose tasks and options have been checked. */
export interface EvaluationRun {
  model: LanguageModel;
  tokenizer: Tokenizer;
  endTokens?: readonly number[] | undefined;
  selection: TaskSelection;
  settings: EvaluationSettings;
  world?: EvalWorld | undefined;
  signal?: AbortSignal | undefined;
  onProgress?: ((progress: EvaluationProgress) => void) | undefined;
  stored?: ((asked: TaskQuestions) => FinishedTask | undefined) | undefined;
  onTask?: ((finished: FinishedTask) => Promise<void> | void) | undefined;
  onFailure?: ((task: Task, error: unknown) => void) | undefined;
}

/**
 * Runs a checked evaluation. If tasks failed and `onFailure` took note of it, the result lacks them,
 * and the groups that contain them.
 */
export async function runEvaluation(run: EvaluationRun): Promise<EvaluationResults> {
  const { model, tokenizer, endTokens, settings, world, signal } = run;
  const { tasks, groups } = run.selection;
  expectPermission(tasks, settings);
  const runPrograms = await programRunner(tasks, world, signal);
  const { data, download, batch } = settings;
  const rows = new TaskRows({
    download,
    ...(data !== undefined && { data }),
    ...(signal && { signal }),
  });
  if (download && world) {
    // Ranks that download one file at once would get in each other's way.
    await onFirst(world, async () => {
      for (const task of tasks) await makeQuestions(task, rows, settings);
      return null;
    });
  }
  if (!download && !run.onFailure) {
    await agreed(world, () => expectAllFiles(tasks, rows, settings));
  }
  const finished = await runTasks({
    tasks,
    rows,
    settings,
    model: new Scorer(model, tokenizer, { batch, world, signal, endTokens }),
    tokenizer,
    contextLength: model.config.contextLength,
    world,
    signal,
    runPrograms,
    onProgress: run.onProgress,
    ...(run.stored && { stored: run.stored }),
    ...(run.onTask && { onTask: run.onTask }),
    ...(run.onFailure && { onFailure: run.onFailure }),
  });
  const failed = tasks.filter(({ name }) => !finished.has(name)).map(({ name }) => name);
  return await assembleResults({
    tasks: tasks.filter(({ name }) => finished.has(name)),
    groups: complete(groups, failed),
    finished,
    config: describe(run),
    bootstrap: settings.bootstrap,
    signal,
  });
}

/** The groups without the failed tasks and the groups that contain them. */
function complete(
  groups: TaskSelection["groups"],
  failed: readonly string[],
): TaskSelection["groups"] {
  const lacking = groups.filter(({ members }) => members.some((name) => failed.includes(name)));
  if (lacking.length === 0) return groups;
  const rest = groups.filter((group) => !lacking.includes(group));
  return complete(rest, [...failed, ...lacking.map(({ name }) => name)]);
}

/** @throws ArgumentError naming the tasks that run programs, if that is not allowed */
function expectPermission(
  tasks: readonly Task[],
  { allowCodeExecution }: EvaluationSettings,
): void {
  const names = tasks.flatMap((task) =>
    task.kind === "generation" && task.runsCode ? [task.name] : [],
  );
  if (names.length === 0 || allowCodeExecution) return;
  throw new ArgumentError(
    `[evaluate] ${names.join(", ")} would run programs that the model wrote; ` +
      `${optionName("allowCodeExecution")} allows it, in a sandbox`,
  );
}

/** @throws DataError with the missing rows of all tasks, before the model works for the first one */
async function expectAllFiles(
  tasks: readonly Task[],
  rows: TaskRows,
  { fewShot }: EvaluationSettings,
): Promise<void> {
  const missing = new Set<string>();
  for (const task of tasks) {
    const examples = task.kind !== "text" && (fewShot ?? task.fewShot?.count ?? 0) > 0;
    await rows.expectFiles(task, examples).catch((error: unknown) => {
      if (!(error instanceof DataError)) throw error;
      missing.add(error.message);
    });
  }
  if (missing.size === 0) return;
  const shown = [...missing].slice(0, 20);
  if (missing.size > shown.length) shown.push(`... and ${missing.size - shown.length} more`);
  throw new DataError(shown.join("\n"));
}

/**
 * Opens the sandbox if a task needs it, before the model works: what is missing shows at once. The
 * first rank runs the programs.
 * @throws ResourceError if this machine has no sandbox
 */
async function programRunner(
  tasks: readonly Task[],
  world: EvalWorld | undefined,
  signal: AbortSignal | undefined,
): Promise<RunPrograms | undefined> {
  if (!tasks.some((task) => task.kind === "generation" && task.runsCode)) return undefined;
  const sandbox = await agreed(world, async () =>
    world && world.rank > 0 ? null : await Sandbox.open({ allowCodeExecution: true }),
  );
  return sandbox ? (programs) => sandbox.runAll(programs, { signal }) : undefined;
}

/** Model and options, as the result records them. Equal evaluations give equal texts. */
function describe({
  model,
  tokenizer,
  settings,
}: Pick<EvaluationRun, "model" | "tokenizer" | "settings">): Record<string, unknown> {
  const { limit, fewShot, seed, batch, bootstrap } = settings;
  return {
    model: model.constructor.name,
    model_num_parameters: model.parameterCount(),
    model_dtype: model.store.dtype === "bf16" ? "bfloat16" : "float32",
    device: model.device.type,
    batch_size: batch,
    limit: limit ?? null,
    bootstrap_iters: bootstrap,
    num_fewshot: fewShot ?? null,
    fewshot_seed: seed,
    max_length: model.config.contextLength,
    tokenizer_sha256: tokenizer.sha256,
    llamaforge_version: buildInfo().version,
  };
}
