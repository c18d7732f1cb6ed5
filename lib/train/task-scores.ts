import { ConfigError, LlamaForgeError } from "../core/errors.js";
import type { Tokenizer } from "../data/tokenizer.js";
import type { Cluster } from "../dist/cluster.js";
import { isAgreed } from "../eval/agree.js";
import type { TaskSelection } from "../eval/check-task.js";
import { runEvaluation } from "../eval/evaluate.js";
import { type HeadlineScore, headlineScores } from "../eval/published.js";
import { makeQuestions } from "../eval/questions.js";
import { selectTasks } from "../eval/registry.js";
import { TaskRows } from "../eval/rows.js";
import { type EvaluationSettings, evaluationSchema } from "../eval/schema.js";
import { clusterWorld } from "../eval/world.js";
import type { LanguageModel } from "../model/language-model.js";

/** Called with a task that could not be scored. */
export type OnFailedTask = (task: string, error: unknown) => void;

/** The part of a recipe that decides which tasks are scored while the model trains. */
export interface TaskScoreOptions {
  tasks: readonly string[];
  data?: string | undefined;
  limit?: number | undefined;
  fewShot?: number | undefined;
}

/** Resamples for standard errors of perplexities; fewer than in a final evaluation. */
const bootstrap = 1000;

/** Errors that are equal on all ranks, because all of them ask the same questions. */
const sharedCodes = ["ERR_DATA", "ERR_ARGUMENT", "ERR_CONFIG", "ERR_TOKENIZER", "ERR_NON_FINITE"];

/** Scores a run's model on tasks. */
export class RunTaskScores {
  readonly #selection: TaskSelection;
  readonly #settings: EvaluationSettings;

  private constructor(selection: TaskSelection, settings: EvaluationSettings) {
    this.#selection = selection;
    this.#settings = settings;
  }

  /**
   * Finds the tasks of a recipe.
   * @throws ConfigError for an unknown task, and for one that runs programs of the model
   */
  static async open(options: TaskScoreOptions): Promise<RunTaskScores> {
    const { tasks: names, ...given } = options;
    const wrong = (message: string) =>
      new ConfigError("config", [{ path: "evaluate.tasks", message }]);
    const selection = await selectTasks(names).catch((error: unknown) => {
      if (!(error instanceof LlamaForgeError)) throw error;
      throw wrong(error.message);
    });
    const running = selection.tasks.find((task) => task.kind === "generation" && task.runsCode);
    if (running) {
      throw wrong(
        `${running.name} runs programs that the model wrote; score it after the training`,
      );
    }
    return new RunTaskScores(selection, evaluationSchema.parse({ ...given, bootstrap }));
  }

  /** Reads the rows of all tasks, so that a missing file is told before the training. */
  async check(failed: OnFailedTask): Promise<void> {
    const { data } = this.#settings;
    const rows = new TaskRows(data === undefined ? {} : { data });
    for (const task of this.#selection.tasks) {
      try {
        await makeQuestions(task, rows, this.#settings);
      } catch (error) {
        failed(task.name, error);
      }
    }
  }

  /**
   * The scores of the model as it is. Tasks that fail are left out. All ranks call it together.
   * @throws the error of a task that failed on this rank alone
   */
  async measure(
    model: LanguageModel,
    { tokenizer, endTokens }: { tokenizer: Tokenizer; endTokens: readonly number[] },
    cluster: Cluster | null,
    failed: OnFailedTask,
  ): Promise<HeadlineScore[]> {
    const results = await runEvaluation({
      model,
      tokenizer,
      endTokens,
      selection: this.#selection,
      settings: this.#settings,
      world: cluster ? clusterWorld(cluster) : undefined,
      onFailure: ({ name }, error) => {
        const known = error instanceof LlamaForgeError && sharedCodes.includes(error.code);
        if (cluster && !known && !isAgreed(error)) throw error;
        failed(name, error);
      },
    });
    const hidden = new Set(
      this.#selection.groups.flatMap(({ mean, members }) =>
        mean && mean.as === undefined ? members : [],
      ),
    );
    return headlineScores(results).filter(({ task }) => !hidden.has(task));
  }
}
