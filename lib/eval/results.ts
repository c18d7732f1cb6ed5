import { bottomUp, groupScores } from "./group-scores.js";
import { aggregate, aggregationOf, higherIsBetter, type MetricValues } from "./metrics.js";
import type { Row, Task, TaskGroup } from "./task.js";

/** One question of a task with its answers, as lm-evaluation-harness logs it. */
export interface EvaluationSample {
  /** Index of the row in its split. */
  doc_id: number;
  doc: Row;
  target: unknown;
  /** Arguments of each request: prompt and continuation, or prompt and settings. */
  arguments: unknown[][];
  resps: unknown[][];
  filtered_resps: unknown[];
  filter: string;
  /** Names of the metrics, whose values stand beside them. */
  metrics: string[];
  doc_hash: string;
  prompt_hash: string;
  target_hash: string;
  [metric: string]: unknown;
}

/** Prompts that were longer than the model's context. The choices of a question share one. */
export interface CutPrompts {
  prompts: number;
  /** Tokens that were cut from their left ends, in all. */
  tokens: number;
}

/** A task that has been scored: everything that its results are made of. Plain JSON. */
export interface FinishedTask {
  name: string;
  /** SHA-256 of everything that was asked, by which a continuation knows the task again. */
  asked: string;
  /** Number of questions of the split, before `limit`. */
  questions: number;
  fewShot: number;
  cut: CutPrompts;
  /** Values of each filter's metrics, one entry for each question asked. */
  values: Record<string, MetricValues[]>;
  samples?: EvaluationSample[];
}

/** Scores of a task or group: `acc,none`, `acc_stderr,none`, and what they belong to. */
export interface TaskScores {
  name: string;
  alias: string;
  /** Number of questions asked. */
  sample_len?: number;
  /** A score, or its standard error; "N/A" where there is none. */
  [score: string]: number | string | undefined;
}

/** Scores in the layout of lm-evaluation-harness' results files. */
export interface EvaluationResults {
  /** Scores of tasks and groups by name. */
  results: Record<string, TaskScores>;
  /** Scores of the groups that have some. */
  groups?: Record<string, TaskScores>;
  /** Members of each group. */
  group_subtasks: Record<string, string[]>;
  configs: Record<string, Record<string, unknown>>;
  versions: Record<string, number | string>;
  "n-shot": Record<string, number>;
  higher_is_better: Record<string, Record<string, boolean>>;
  "n-samples": Record<string, { original: number; effective: number }>;
  /** Tasks with prompts that were longer than the model's context. */
  "cut-prompts": Record<string, CutPrompts>;
  /** Model, device and options. */
  config: Record<string, unknown>;
  samples?: Record<string, EvaluationSample[]>;
}

export interface ResultParts {
  tasks: readonly Task[];
  groups: readonly TaskGroup[];
  finished: ReadonlyMap<string, FinishedTask>;
  config: Record<string, unknown>;
  bootstrap: number;
  signal?: AbortSignal | undefined;
}

/** Makes the results of tasks that are all finished. */
export async function assembleResults(parts: ResultParts): Promise<EvaluationResults> {
  const { tasks, groups, config } = parts;
  const done = tasks.map((task) => ({ task, made: finishedOf(parts, task) }));
  const results: Record<string, TaskScores> = {};
  for (const { task, made } of done) results[task.name] = await scoresOf(task, made, parts);
  const ordered = bottomUp(groups);
  const averaged: Record<string, TaskScores> = {};
  for (const group of ordered) {
    results[group.name] = groupScores(group, groups, results);
    if (group.mean) averaged[group.name] = results[group.name] as TaskScores;
  }
  const shots = Object.fromEntries(done.map(({ task, made }) => [task.name, made.fewShot]));
  const better = Object.fromEntries(
    done.map(({ task }) => [
      task.name,
      Object.fromEntries(task.metrics.map((metric) => [metric, higherIsBetter(metric)])),
    ]),
  );
  for (const group of ordered) {
    const counts = new Set(group.members.flatMap((name) => shots[name] ?? []));
    if (counts.size === 1) shots[group.name] = [...counts][0] as number;
    const known = Object.assign({}, ...group.members.map((name) => better[name] ?? {}));
    if (Object.keys(known).length > 0) better[group.name] = known;
  }
  const cut = done.filter(({ made }) => made.cut.prompts > 0);
  return {
    results,
    ...(Object.keys(averaged).length > 0 && { groups: averaged }),
    group_subtasks: Object.fromEntries(groups.map(({ name, members }) => [name, [...members]])),
    configs: sorted(done.map(({ task, made }) => [task.name, configOf(task, made)])),
    versions: sorted<number | string>([
      ...tasks.map((task) => [task.name, task.version] as const),
      ...groups.map(({ name, version }) => [name, String(version ?? "N/A")] as const),
    ]),
    "n-shot": sorted(Object.entries(shots)),
    higher_is_better: sorted(Object.entries(better)),
    "n-samples": Object.fromEntries(
      done.map(({ task, made }) => [
        task.name,
        { original: made.questions, effective: askedOf(made) },
      ]),
    ),
    "cut-prompts": Object.fromEntries(cut.map(({ task, made }) => [task.name, made.cut])),
    config,
    ...(done.some(({ made }) => made.samples) && {
      samples: Object.fromEntries(done.map(({ task, made }) => [task.name, made.samples ?? []])),
    }),
  };
}

function finishedOf({ finished }: ResultParts, { name }: Task): FinishedTask {
  const made = finished.get(name);
  if (made === undefined) throw new Error(`the task ${name} has not been scored`);
  return made;
}

function askedOf({ values }: FinishedTask): number {
  return Math.max(0, ...Object.values(values).map(({ length }) => length));
}

async function scoresOf(
  task: Task,
  made: FinishedTask,
  { bootstrap, signal }: ResultParts,
): Promise<TaskScores> {
  const { name, alias = name } = task;
  const scores: TaskScores = { name, alias, sample_len: askedOf(made) };
  for (const [filter, questions] of Object.entries(made.values)) {
    for (const metric of Object.keys(questions[0] ?? {})) {
      const values = questions.flatMap((question) => question[metric] ?? []);
      const pairs = questions.map((question) => question[metric] ?? Number.NaN);
      const aggregation = aggregationOf(task, metric);
      const { value, error } = await aggregate(
        aggregation,
        aggregation === "mean" || aggregation === "perplexity" ? (values as number[]) : pairs,
        bootstrap,
        signal,
      );
      scores[`${metric},${filter}`] = value;
      scores[`${metric}_stderr,${filter}`] = error ?? "N/A";
    }
  }
  return scores;
}

/** A task's configuration in the words of the harness. */
function configOf(task: Task, { fewShot }: FinishedTask): Record<string, unknown> {
  const { data, kind } = task;
  const outputs = {
    choice: "multiple_choice",
    continuation: "loglikelihood",
    text: "loglikelihood_rolling",
    generation: "generate_until",
  };
  const metrics = task.metrics.map((metric) => ({
    metric,
    aggregation: aggregationOf(task, metric),
    higher_is_better: higherIsBetter(metric),
  }));
  return {
    task: task.name,
    ...(task.alias && { task_alias: task.alias }),
    dataset_path: data.dataset,
    ...(data.config && { dataset_name: data.config }),
    ...(data.revision && { dataset_revision: data.revision }),
    test_split: data.split,
    ...(data.fewShotSplit && { fewshot_split: data.fewShotSplit }),
    description: task.description ?? "",
    target_delimiter: task.targetDelimiter ?? " ",
    fewshot_delimiter: task.fewShot?.delimiter ?? "\n\n",
    num_fewshot: fewShot,
    metric_list: metrics,
    output_type: outputs[kind],
    ...(task.kind === "generation" && {
      generation_kwargs: {
        until: [...task.until],
        max_gen_toks: task.maxTokens,
        do_sample: (task.temperature ?? 0) > 0,
        temperature: task.temperature ?? 0,
      },
      repeats: task.repeats ?? 1,
      filter_list: (task.filters ?? []).map(({ name }) => ({ name })),
    }),
    metadata: { version: task.version },
  };
}

function sorted<T>(entries: readonly (readonly [string, T])[]): Record<string, T> {
  return Object.fromEntries([...entries].sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0)));
}
