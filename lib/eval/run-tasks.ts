import { LlamaForgeError } from "../core/errors.js";
import { later } from "../core/turn.js";
import type { Tokenizer } from "../data/tokenizer.js";
import { agreed } from "./agree.js";
import type { ModelAnswers } from "./model-answers.js";
import { countRequests, makeQuestions, type TaskQuestions } from "./questions.js";
import type { FinishedTask } from "./results.js";
import type { TaskRows } from "./rows.js";
import type { EvaluationSettings } from "./schema.js";
import { scoreTask } from "./score-task.js";
import type { RunPrograms, Task } from "./task.js";
import { textWindows } from "./token-requests.js";
import type { EvalWorld } from "./world.js";

/** Progress of an evaluation. */
export interface EvaluationProgress {
  /** Name of the task in progress. */
  task: string;
  /** Requests of this task that are done, and all of its requests. */
  done: number;
  requests: number;
  /** Number of tasks finished, and of all tasks. */
  finishedTasks: number;
  tasks: number;
}

/** Everything that the tasks of an evaluation run on. */
export interface TaskRun {
  tasks: readonly Task[];
  rows: TaskRows;
  settings: EvaluationSettings;
  model: ModelAnswers;
  tokenizer: Tokenizer;
  contextLength: number;
  world?: EvalWorld | undefined;
  signal?: AbortSignal | undefined;
  /** Runs programs that the model wrote, for the tasks that need it. */
  runPrograms?: RunPrograms | undefined;
  onProgress?: ((progress: EvaluationProgress) => void) | undefined;
  /** A task's result of an earlier call, if it asked the same. Equal on all ranks. */
  stored?: (asked: TaskQuestions) => FinishedTask | undefined;
  /** Called with each task that has been asked, before the next one begins, and awaited. */
  onTask?: (finished: FinishedTask) => Promise<void> | void;
  /** Called with a task that failed; the others go on. Without it, a failure ends the run. */
  onFailure?: (task: Task, error: unknown) => void;
}

/**
 * Asks a model the questions of tasks, one task after the other. The rows of the next task are read
 * while the device works.
 */
export async function runTasks(run: TaskRun): Promise<Map<string, FinishedTask>> {
  const { tasks, signal, onFailure } = run;
  const finished = new Map<string, FinishedTask>();
  const prepare = (task: Task | undefined): Promise<TaskQuestions | null> =>
    later(task ? makeQuestions(task, run.rows, run.settings) : Promise.resolve(null));
  let next = prepare(tasks[0]);
  for (const [index, task] of tasks.entries()) {
    signal?.throwIfAborted();
    const current = next;
    try {
      const asked = (await agreed(run.world, () => current)) as TaskQuestions;
      next = prepare(tasks[index + 1]);
      finished.set(task.name, await ask(asked, run, finished.size));
    } catch (thrown) {
      const error = nameTask(thrown, task);
      if (!onFailure || signal?.aborted) throw error;
      onFailure(task, error);
      if (next === current) next = prepare(tasks[index + 1]);
    }
  }
  return finished;
}

/** Adds the task's name to an error's message that lacks it. */
function nameTask(error: unknown, { name }: Task): unknown {
  if (error instanceof LlamaForgeError && !error.message.includes(name)) {
    error.message = `${name}: ${error.message}`;
  }
  return error;
}

async function ask(
  asked: TaskQuestions,
  { stored, onTask, ...run }: TaskRun,
  finishedTasks: number,
): Promise<FinishedTask> {
  const known = stored?.(asked);
  if (known) return known;
  const { tokenizer, contextLength, world, settings, onProgress } = run;
  const requests = countRequests(asked);
  const tell = (done: number): void => {
    onProgress?.({
      task: asked.task.name,
      done,
      requests,
      finishedTasks,
      tasks: run.tasks.length,
    });
  };
  tell(0);
  const result = await scoreTask(asked, run.model, {
    logSamples: settings.logSamples,
    world,
    runPrograms: run.runPrograms,
    onDone: tell,
    countTokens: async (texts) => {
      const windows = await textWindows(tokenizer, texts, contextLength);
      return windows.map((parts) => parts.reduce((sum, { scored }) => sum + scored, 0));
    },
  });
  await onTask?.(result);
  return result;
}
