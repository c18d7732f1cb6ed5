import { jsonText } from "../core/check-values.js";
import { DataError } from "../core/errors.js";
import { onFirst } from "./agree.js";
import { choiceValues, continuationValues, type MetricValues, textValues } from "./metrics.js";
import { type ModelAnswers, type OnDone, RequestError } from "./model-answers.js";
import { choiceTexts, countedText, rightChoice } from "./prompt.js";
import type { Question, TaskQuestions } from "./questions.js";
import type { CutPrompts, EvaluationSample, FinishedTask } from "./results.js";
import { inRow, inRowLater } from "./rows.js";
import { makeSample } from "./samples.js";
import type { GenerationTask, RunPrograms, Scores } from "./task.js";
import type { EvalWorld } from "./world.js";

export interface ScoringOptions {
  logSamples: boolean;
  /** Number of scored tokens of texts. */
  countTokens: (texts: readonly string[]) => Promise<number[]>;
  /** Ranks that evaluate together. Each gets all answers of the model. */
  world?: EvalWorld | undefined;
  /** Runs programs that the model wrote, for the tasks that need it. */
  runPrograms?: RunPrograms | undefined;
  onDone: OnDone;
}

/** A question with its values, one entry for each filter of the task. */
interface ScoredQuestion {
  id: number;
  values: Record<string, MetricValues>;
  cut: CutPrompts;
  samples: EvaluationSample[];
}

/** The answers to a question as the harness records them, before any filter. */
interface Replies {
  /** One for each request. */
  raw: readonly unknown[];
  cutTokens: readonly number[];
}

/**
 * Asks the model the questions of a task and scores its answers.
 * @throws DataError naming file and row of a question that cannot be scored
 */
export async function scoreTask(
  asked: TaskQuestions,
  model: ModelAnswers,
  options: ScoringOptions,
): Promise<FinishedTask> {
  const all = await scoreQuestions(asked, model, options);
  const values: FinishedTask["values"] = {};
  for (const question of all) {
    for (const [filter, metrics] of Object.entries(question.values)) {
      values[filter] ??= [];
      values[filter].push(metrics);
    }
  }
  const sum = (field: keyof CutPrompts) => all.reduce((total, { cut }) => total + cut[field], 0);
  return {
    name: asked.task.name,
    asked: asked.asked,
    questions: asked.available,
    fewShot: asked.fewShot,
    cut: { prompts: sum("prompts"), tokens: sum("tokens") },
    values,
    ...(options.logSamples && { samples: all.flatMap(({ samples }) => samples) }),
  };
}

async function scoreQuestions(
  asked: TaskQuestions,
  model: ModelAnswers,
  { logSamples, countTokens, world, runPrograms, onDone }: ScoringOptions,
): Promise<ScoredQuestion[]> {
  const { task, questions } = asked;
  const finish = (
    question: Question,
    { raw, cutTokens }: Replies,
    filtered: Readonly<Record<string, { replies: readonly unknown[]; values: MetricValues }>>,
  ): ScoredQuestion => {
    const entries = Object.entries(filtered);
    return {
      id: question.id,
      values: Object.fromEntries(entries.map(([name, { values }]) => [name, values])),
      cut: cutOf(question, cutTokens),
      samples: logSamples
        ? entries.map(([filter, { replies, values }]) =>
            makeSample(task, question, { filter, raw, filtered: replies, values }),
          )
        : [],
    };
  };
  const plain = (question: Question, replies: Replies, values: MetricValues): ScoredQuestion =>
    finish(question, replies, { none: { replies: replies.raw, values } });

  if (task.kind === "text") {
    const texts = questions.map(({ text }) => text);
    const [likelihoods, tokens] = [
      await model.textLikelihoods(texts, onDone),
      await countTokens(texts),
    ];
    return questions.map((question, i) => {
      const likelihood = likelihoods[i] as number;
      const counted = countedText(task, question.row);
      const values = textValues(task, likelihood, counted, tokens[i] as number);
      return plain(question, { raw: [likelihood], cutTokens: [] }, values);
    });
  }
  if (task.kind === "generation") {
    const requests = questions.flatMap(({ answers }) => answers);
    const written = inGroups(
      await model.answers(requests, onDone),
      questions.map(({ answers }) => answers.length),
    );
    const scoreOne = async (question: Question, i: number): Promise<ScoredQuestion> => {
      const answers = written[i] ?? [];
      const texts = answers.map(({ text }) => text);
      const replies = { raw: texts, cutTokens: answers.map(({ cutTokens }) => cutTokens) };
      const filtered = await filteredScores(task, question, texts, runPrograms ?? null);
      return finish(question, replies, filtered);
    };
    // Programs that the model wrote run side by side; the sandbox limits their number.
    const score = () => Promise.all(questions.map(scoreOne));
    return task.runsCode && world ? await onFirst(world, score) : await score();
  }
  const requests = questions.flatMap(({ likelihoods }) => likelihoods);
  const said = inGroups(
    await model.likelihoods(requests, onDone).catch((error) => nameRow(asked, error)),
    questions.map(({ likelihoods }) => likelihoods.length),
  );
  return questions.map((question, i) => {
    const likelihoods = said[i] ?? [];
    const replies = {
      raw: likelihoods.map(({ logLikelihood, isGreedy }) => [logLikelihood, isGreedy]),
      cutTokens: likelihoods.map(({ cutTokens }) => cutTokens),
    };
    const { row } = question;
    if (task.kind === "continuation") {
      const [first] = likelihoods;
      if (!first) throw new Error(`a question of ${task.name} has no request`);
      return plain(question, replies, continuationValues(task, first));
    }
    const values = choiceValues(task, rightChoice(task, row), choiceTexts(task, row), likelihoods);
    return plain(question, replies, values);
  });
}

/** Throws the error of a request as one of its row. */
function nameRow({ task, questions }: TaskQuestions, error: unknown): never {
  if (!(error instanceof RequestError)) throw error;
  let requests = 0;
  const question = questions.find(({ likelihoods }) => {
    requests += likelihoods.length;
    return error.request < requests;
  });
  if (!question) throw error;
  return inRow(task, question.row, () => {
    throw new DataError(error.problem, { cause: error });
  });
}

/** The prompts of a question that were cut. Choices that share a prompt count once. */
function cutOf({ likelihoods, answers }: Question, cutTokens: readonly number[]): CutPrompts {
  const cut = new Map<string, number>();
  for (const [i, { prompt }] of [...likelihoods, ...answers].entries()) {
    const tokens = cutTokens[i] ?? 0;
    if (tokens > 0) cut.set(prompt, Math.max(tokens, cut.get(prompt) ?? 0));
  }
  return { prompts: cut.size, tokens: [...cut.values()].reduce((sum, tokens) => sum + tokens, 0) };
}

/** Values of each filter of a generation task, and the answers that it leaves. */
async function filteredScores(
  task: GenerationTask,
  { row }: Question,
  answers: readonly string[],
  runPrograms: RunPrograms | null,
): Promise<Record<string, { replies: readonly string[]; values: MetricValues }>> {
  const filters = task.filters ?? [{ name: "none", apply: (_: unknown, text: string) => text }];
  const scored: Record<string, { replies: readonly string[]; values: MetricValues }> = {};
  for (const { name, apply } of filters) {
    const replies = inRow(task, row, () => answers.map((answer) => apply(row, answer)));
    const score = async () => expectScores(task, await task.score(row, replies, runPrograms));
    scored[name] = { replies, values: await inRowLater(task, row, score) };
  }
  return scored;
}

/** @throws DataError for a metric without a number */
function expectScores(task: GenerationTask, scores: Scores): Scores {
  for (const name of task.metrics) {
    const value: unknown = scores?.[name];
    if (typeof value === "number" && !Number.isNaN(value)) continue;
    throw new DataError(`expected a number for ${name} from score, got ${jsonText(value)}`);
  }
  return scores;
}

/** A list in consecutive groups of these lengths. */
function inGroups<T>(list: readonly T[], lengths: readonly number[]): T[][] {
  let start = 0;
  return lengths.map((length) => {
    start += length;
    return list.slice(start - length, start);
  });
}
