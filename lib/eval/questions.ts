import { createHash } from "node:crypto";
import { DataError } from "../core/errors.js";
import { Examples } from "./few-shot.js";
import type { AnswerRequest, LikelihoodRequest } from "./model-answers.js";
import {
  answerRequests,
  countedText,
  likelihoodRequests,
  rightChoice,
  wholeText,
} from "./prompt.js";
import type { TaskRows } from "./rows.js";
import type { EvaluationSettings } from "./schema.js";
import type { Row, Task } from "./task.js";

/** A question of a task with everything that is asked about it. */
export interface Question {
  /** Index of the row in its split. */
  id: number;
  row: Row;
  /** Requests of a choice, continuation or generation task. */
  likelihoods: readonly LikelihoodRequest[];
  answers: readonly AnswerRequest[];
  /** The text of a text task. */
  text: string;
}

/** A task that is ready to be asked. */
export interface TaskQuestions {
  task: Task;
  /** Number of rows of the split, before the limit. */
  available: number;
  /** Number of solved examples before each question. */
  fewShot: number;
  questions: Question[];
  /** SHA-256 of everything that is asked, and of the rows that score it. */
  asked: string;
}

/**
 * Reads a task's rows and makes its requests.
 * @throws DataError naming the file, and the row, that is missing or wrong
 */
export async function makeQuestions(
  task: Task,
  rows: TaskRows,
  { limit, fewShot, seed }: Pick<EvaluationSettings, "limit" | "fewShot" | "seed">,
): Promise<TaskQuestions> {
  const all = await rows.questionsOf(task);
  const examples = await Examples.open(task, rows, {
    ...(fewShot !== undefined &&
      !task.fewShot?.file &&
      !task.fewShot?.examples && { count: fewShot }),
    seed,
  });
  const repeats = task.kind === "generation" ? (task.repeats ?? 1) : 1;
  const questions = all.slice(0, limit).map((row, id): Question => {
    const shown = examples.next(row);
    const empty = { id, row, likelihoods: [], answers: [], text: "" };
    if (task.kind === "text") return { ...empty, text: wholeText(task, row) };
    if (task.kind === "generation") {
      return { ...empty, answers: answerRequests(task, row, shown, seed + id * repeats) };
    }
    const likelihoods = likelihoodRequests(task, row, shown);
    // A wrong answer key shows before the model works.
    if (task.kind === "choice") rightChoice(task, row);
    return { ...empty, likelihoods };
  });
  expectText(task, questions);
  return {
    task,
    available: all.length,
    fewShot: examples.count,
    questions,
    asked: hashOf(task, questions),
  };
}

/** @throws DataError for a text task whose texts are all empty: no score can be divided by nothing */
function expectText(task: Task, questions: readonly Question[]): void {
  if (task.kind !== "text") return;
  if (questions.some(({ row, text }) => text !== "" && countedText(task, row) !== "")) return;
  throw new DataError(
    `[evaluate] ${task.name}: expected texts, got ${questions.length} empty ones`,
  );
}

/** Number of requests to the model. */
export function countRequests({ task, questions }: TaskQuestions): number {
  if (task.kind === "text") return questions.length;
  return questions.reduce(
    (sum, { likelihoods, answers }) => sum + likelihoods.length + answers.length,
    0,
  );
}

function hashOf(task: Task, questions: readonly Question[]): string {
  const hash = createHash("sha256").update(JSON.stringify([task.name, task.version, task.metrics]));
  for (const { row, likelihoods, answers, text } of questions) {
    const counted = task.kind === "text" ? countedText(task, row) : "";
    hash.update(JSON.stringify([row, likelihoods, answers, text, counted], plainBigInts));
  }
  return hash.digest("hex");
}

/** Parquet's 64-bit integers as numbers, because JSON has none. */
export function plainBigInts(_: string, value: unknown): unknown {
  return typeof value === "bigint" ? Number(value) : value;
}
