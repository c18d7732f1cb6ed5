import type { EvaluationResults } from "./results.js";

/** Scores of a model as its authors, or the authors of TinyLlama, have published them. */
export interface PublishedRow {
  model: string;
  /** Tokens that the model was trained on, in billions. */
  billionTokens: number;
  /** Percentages by task or group. */
  scores: Readonly<Record<string, number>>;
}

// Source of both tables: EVAL.md of github.com/jzhang38/TinyLlama, but for the row of Pythia-1.4B,
// which is quoted from the paper of TinyLlama (arXiv 2401.02385, table 2) by that of MonoFormer
// (arXiv 2409.16280, table 2). The row of OPT-1.3B is of table 2 as well; its mean is the
// average that the table prints, 51.44. Commonsense scores are acc_norm where a task has it, else
// acc.

const commonsenseTasks = [
  "hellaswag",
  "openbookqa",
  "winogrande",
  "arc_challenge",
  "arc_easy",
  "boolq",
  "piqa",
] as const;

const problemTasks = ["mmlu", "bbh", "humaneval", "drop"] as const;

function row(
  model: string,
  billionTokens: number,
  commonsense: readonly number[],
  problems: readonly number[] = [],
): PublishedRow {
  const scores = [
    ...commonsense.map((score, i) => [commonsenseTasks[i], score]),
    ...problems.map((score, i) => [problemTasks[i], score]),
  ];
  return { model, billionTokens, scores: Object.fromEntries(scores) };
}

export const publishedRows: readonly PublishedRow[] = [
  row("OPT-1.3B", 300, [53.65, 33.4, 59.59, 29.44, 50.8, 60.83, 72.36]),
  row(
    "Pythia-1.0B",
    300,
    [47.16, 31.4, 53.43, 27.05, 48.99, 60.83, 69.21],
    [25.7, 28.19, 1.83, 4.25],
  ),
  row("Pythia-1.4B", 300, [52.01, 33.2, 57.38, 28.5, 54.0, 63.27, 70.95]),
  row(
    "TinyLlama-1.1B",
    103,
    [43.5, 29.8, 53.28, 24.32, 44.91, 59.66, 67.3],
    [26.45, 28.82, 5.49, 11.42],
  ),
  row(
    "TinyLlama-1.1B",
    503,
    [49.56, 31.4, 55.8, 26.54, 48.32, 56.91, 69.42],
    [26.16, 28.83, 4.88, 12.43],
  ),
  row(
    "TinyLlama-1.1B",
    1007,
    [52.54, 33.4, 55.96, 27.82, 52.36, 59.54, 69.91],
    [24.65, 29.21, 6.1, 13.03],
  ),
  row(
    "TinyLlama-1.1B",
    1500,
    [53.68, 35.2, 58.33, 29.18, 51.89, 59.08, 71.65],
    [24.85, 28.2, 7.93, 14.43],
  ),
  row(
    "TinyLlama-1.1B",
    2000,
    [54.63, 33.4, 56.83, 28.07, 54.67, 63.21, 70.67],
    [25.97, 29.07, 6.71, 13.14],
  ),
  row(
    "TinyLlama-1.1B",
    2500,
    [58.96, 34.4, 58.72, 31.91, 56.78, 63.21, 73.07],
    [25.92, 29.32, 9.15, 15.45],
  ),
  row("TinyLlama-1.1B", 3000, [59.2, 36.0, 59.12, 30.12, 55.25, 57.83, 73.29]),
];

/**
 * The published column that a task or group compares with; undefined without one. BIG-Bench Hard was
 * scored without chains of thought, which the group `bbh` has, and DROP with examples that show
 * their answers, which the task `drop` has not.
 */
export function publishedColumn(task: string): string | undefined {
  if (task === "bbh_fewshot") return "bbh";
  if (task === "drop_fewshot") return "drop";
  if (task === "bbh" || task === "drop") return undefined;
  return [...commonsenseTasks, ...problemTasks].find((name) => name === task);
}

/**
 * A published score in percent; undefined if there is none. The column `commonsense` is the average
 * of the seven tasks.
 */
export function publishedScore({ scores }: PublishedRow, task: string): number | undefined {
  if (task !== "commonsense") return scores[publishedColumn(task) ?? ""];
  const seven = commonsenseTasks.flatMap((name) => scores[name] ?? []);
  if (seven.length < commonsenseTasks.length) return undefined;
  return seven.reduce((sum, score) => sum + score, 0) / seven.length;
}

/** Metrics in the order in which one of them stands for its task. The last two are no shares. */
const headline = [
  "average",
  "acc_norm",
  "acc",
  "exact_match",
  "f1",
  "pass@1",
  "bits_per_byte",
  "perplexity",
] as const;

/** The score that stands for a task in tables and charts. */
export interface HeadlineScore {
  task: string;
  metric: string;
  /** Share of right answers, 0 to 1; for `bits_per_byte` and `perplexity` that measure. */
  value: number;
  /** Standard error; null if there is none. */
  error: number | null;
}

/**
 * One score for each task and group: the one that a published table would have, `acc_norm` where a
 * task has it, else its accuracy, exact match, F1 or pass@1, and for texts bits per byte.
 */
export function headlineScores({ results }: Pick<EvaluationResults, "results">): HeadlineScore[] {
  return Object.entries(results).flatMap(([task, scores]) => {
    const keys = Object.keys(scores);
    for (const metric of headline) {
      const key = keys.find((one) => one.startsWith(`${metric},`));
      const value = key === undefined ? undefined : scores[key];
      if (key === undefined || typeof value !== "number") continue;
      const error = scores[key.replace(",", "_stderr,")];
      return [{ task, metric, value, error: typeof error === "number" ? error : null }];
    }
    return [];
  });
}

/** Whether a headline score is a share of right answers, which tables give in percent. */
export function isShare({ metric }: Pick<HeadlineScore, "metric">): boolean {
  return metric !== "bits_per_byte" && metric !== "perplexity";
}

/** One model's scores in percent; null where a task has none. */
export interface ComparedRow {
  model: string;
  scores: (number | null)[];
  published: boolean;
}

/**
 * A table of an evaluation beside the published rows. With all seven commonsense tasks, the last
 * column is their average, as the paper gives it.
 */
export interface Comparison {
  columns: string[];
  rows: ComparedRow[];
}

/** Puts the published rows beside an evaluation. Null if no task of it was published. */
export function compareWithPublished(
  evaluation: Pick<EvaluationResults, "results">,
  model: string,
): Comparison | null {
  const own = new Map(
    headlineScores(evaluation)
      .filter(isShare)
      .flatMap(({ task, value }) => {
        const column = publishedColumn(task);
        return column === undefined ? [] : [[column, 100 * value] as const];
      }),
  );
  const columns: string[] = [...commonsenseTasks, ...problemTasks].filter((name) => own.has(name));
  if (columns.length === 0) return null;
  const averaged = commonsenseTasks.every((name) => own.has(name));
  const scoresOf = (read: (name: string) => number | undefined): (number | null)[] => {
    const scores = columns.map((name) => read(name) ?? null);
    if (!averaged) return scores;
    const seven = commonsenseTasks.flatMap((name) => read(name) ?? []);
    const complete = seven.length === commonsenseTasks.length;
    const average = seven.reduce((sum, score) => sum + score, 0) / seven.length;
    return [...scores, complete ? average : null];
  };
  const published = publishedRows.map(({ model: name, billionTokens, scores }) => ({
    model: `${name}, ${describeTokens(billionTokens)}`,
    scores: scoresOf((column) => scores[column]),
    published: true,
  }));
  return {
    columns: averaged ? [...columns, "average"] : columns,
    rows: [
      { model, scores: scoresOf((column) => own.get(column)), published: false },
      ...published.filter(({ scores }) => scores.some((score) => score !== null)),
    ],
  };
}

/** `503B`, `1.5T`: tokens that a model was trained on. */
export function describeTokens(billions: number): string {
  return billions < 1000 ? `${billions}B` : `${Number((billions / 1000).toFixed(2))}T`;
}
