import type { Likelihood } from "./model-answers.js";
import { countWords } from "./python-text.js";
import {
  bootstrapPerplexityError,
  meanOf,
  perplexityOf,
  preciseExp,
  standardError,
  sumOf,
} from "./statistics.js";
import type { ChoiceTask, ContinuationTask, Task, TextTask } from "./task.js";

/** A metric's value for one question: a number, or a sum and the count that it is divided by. */
export type MetricValue = number | readonly [sum: number, count: number];

/** Values of metrics by name, for one question. */
export type MetricValues = Readonly<Record<string, MetricValue>>;

/** How the values of all questions become one score; the names are the harness's. */
export type Aggregation = "mean" | "perplexity" | "weighted_perplexity" | "bits_per_byte";

export interface Score {
  value: number;
  /** Standard error; null where lm-evaluation-harness gives none. */
  error: number | null;
}

/** Metrics of which a lower value is better. */
const lowerIsBetter = new Set([
  "perplexity",
  "word_perplexity",
  "byte_perplexity",
  "token_perplexity",
  "bits_per_byte",
]);

export function higherIsBetter(metric: string): boolean {
  return !lowerIsBetter.has(metric);
}

export function aggregationOf(task: Task, metric: string): Aggregation {
  if (task.kind === "text")
    return metric === "bits_per_byte" ? "bits_per_byte" : "weighted_perplexity";
  return task.kind === "continuation" && metric === "perplexity" ? "perplexity" : "mean";
}

/**
 * Accuracy of one question. `acc` takes the choice of the highest log-likelihood; `acc_norm`
 * divides it by the number of characters first. Of equal choices the first one counts.
 * @param texts the choices; for a task that compares prompts, the prompts
 */
export function choiceValues(
  task: ChoiceTask,
  answer: number,
  texts: readonly string[],
  likelihoods: readonly Likelihood[],
): MetricValues {
  const values = likelihoods.map(({ logLikelihood }) => logLikelihood);
  const perCharacter = values.map((value, i) => value / [...(texts[i] as string)].length);
  const chosen = { acc: argmax(values), acc_norm: argmax(perCharacter) };
  return Object.fromEntries(
    task.metrics.map((metric) => [metric, chosen[metric] === answer ? 1 : 0]),
  );
}

export function continuationValues(
  task: ContinuationTask,
  { logLikelihood, isGreedy }: Likelihood,
): MetricValues {
  const values = { perplexity: logLikelihood, acc: isGreedy ? 1 : 0 };
  return Object.fromEntries(task.metrics.map((metric) => [metric, values[metric]]));
}

/**
 * Values of a whole text.
 * @param counted text whose words and bytes count
 * @param tokens number of tokens of the text that was scored
 */
export function textValues(
  task: Pick<TextTask, "metrics">,
  logLikelihood: number,
  counted: string,
  tokens: number,
): MetricValues {
  const bytes = Buffer.byteLength(counted, "utf8");
  const counts = {
    word_perplexity: countWords(counted),
    byte_perplexity: bytes,
    bits_per_byte: bytes,
    token_perplexity: tokens,
  };
  return Object.fromEntries(
    task.metrics.map((metric) => [metric, [logLikelihood, counts[metric]]]),
  );
}

/** Index of the largest value, the first one of equals. NaN counts as the largest, as in NumPy. */
export function argmax(values: readonly number[]): number {
  const broken = values.findIndex(Number.isNaN);
  if (broken >= 0) return broken;
  return values.reduce((best, value, i) => (value > (values[best] as number) ? i : best), 0);
}

/**
 * Score of a task from the values of its questions, with the standard error.
 * @param bootstrapIterations resamples for the standard error of a perplexity; 0: no error at all,
 *   of any metric
 */
export async function aggregate(
  aggregation: Aggregation,
  values: readonly MetricValue[],
  bootstrapIterations: number,
  signal?: AbortSignal,
): Promise<Score> {
  if (aggregation === "mean" || aggregation === "perplexity") {
    const numbers = values as readonly number[];
    const errors = bootstrapIterations > 0;
    if (aggregation === "mean") {
      return { value: meanOf(numbers), error: errors ? standardError(numbers) : null };
    }
    const error = await bootstrapPerplexityError(numbers, bootstrapIterations, signal);
    return { value: perplexityOf(numbers), error };
  }
  const pairs = values as readonly (readonly [number, number])[];
  const mean = sumOf(pairs.map(([sum]) => sum)) / sumOf(pairs.map(([, count]) => count));
  const value = aggregation === "bits_per_byte" ? -mean / Math.LN2 : preciseExp(-mean);
  return { value, error: null };
}
