import { jsonText } from "../core/check-values.js";
import { DataError } from "../core/errors.js";
import type { AnswerRequest, LikelihoodRequest } from "./model-answers.js";
import { inRow } from "./rows.js";
import type { ChoiceTask, ContinuationTask, GenerationTask, Row, Task, TextTask } from "./task.js";

// From a row to the texts that the model sees. The texts equal those of lm-evaluation-harness
// character for character.

const defaultDelimiter = " ";
const defaultExampleDelimiter = "\n\n";

/** Solved examples and the text before them, for one question. */
export interface Shown {
  examples: readonly Row[];
  /** Text before the first example. */
  description: string;
}

/** Likelihoods that a question needs: one of each choice, or the one of its continuation. */
export function likelihoodRequests(
  task: ChoiceTask | ContinuationTask,
  row: Row,
  shown: Shown,
): LikelihoodRequest[] {
  return inRow(task, row, () => {
    const before = beforeQuestion(task, shown);
    if (task.kind === "continuation") {
      const prompt = textOf("prompt", task.prompt(row));
      return [
        { prompt: before + prompt, continuation: textOf("continuation", task.continuation(row)) },
      ];
    }
    const delimiter = task.targetDelimiter ?? defaultDelimiter;
    const prompt = task.prompt(row);
    const texts = textsOf("choices", task.choices(row));
    if (typeof prompt !== "string") textsOf("prompt", prompt);
    if (typeof prompt === "string") {
      return texts.map((text) => ({ prompt: before + prompt, continuation: delimiter + text }));
    }
    const continuation = delimiter + (texts[0] ?? "");
    return prompt.map((text) => ({ prompt: before + text, continuation }));
  });
}

/** @throws DataError if a function of the task gave something else than a text */
function textOf(name: string, value: unknown): string {
  if (typeof value === "string") return value;
  throw new DataError(`expected a text from ${name}, got ${jsonText(value)}`);
}

function textsOf(name: string, value: unknown): readonly string[] {
  if (Array.isArray(value) && value.length > 0) return value.map((text) => textOf(name, text));
  throw new DataError(`expected a list of texts from ${name}, got ${jsonText(value)}`);
}

/**
 * Index of a question's right choice.
 * @throws DataError naming file and row if it is outside of the choices
 */
export function rightChoice(task: ChoiceTask, row: Row): number {
  return inRow(task, row, () => {
    const answer = task.answer(row);
    const prompt = task.prompt(row);
    const count = typeof prompt === "string" ? task.choices(row).length : prompt.length;
    if (Number.isInteger(answer) && answer >= 0 && answer < count) return answer;
    throw new DataError(`expected a right answer from 0 to ${count - 1}, got ${jsonText(answer)}`);
  });
}

/**
 * The texts of all choices, for the lengths that `acc_norm` divides by. Where prompts are compared,
 * these are the prompts' texts.
 */
export function choiceTexts(task: ChoiceTask, row: Row): readonly string[] {
  return inRow(task, row, () => {
    const prompt = task.prompt(row);
    return typeof prompt === "string" ? task.choices(row) : prompt;
  });
}

/** The answers that a question asks for: as many requests as the task has repeats. */
export function answerRequests(
  task: GenerationTask,
  row: Row,
  shown: Shown,
  seed: number,
): AnswerRequest[] {
  const prompt = inRow(task, row, () => {
    return beforeQuestion(task, shown) + textOf("prompt", task.prompt(row));
  });
  return Array.from({ length: task.repeats ?? 1 }, (_, repeat) => ({
    prompt,
    until: task.until,
    maxTokens: task.maxTokens,
    temperature: task.temperature ?? 0,
    topP: task.topP ?? 1,
    seed: seed + repeat,
  }));
}

/** The text whose likelihood is measured. It has no description and no examples. */
export function wholeText(task: TextTask, row: Row): string {
  return inRow(task, row, () => textOf("text", task.text(row)));
}

/** The text whose words and bytes are counted. */
export function countedText(task: TextTask, row: Row): string {
  return inRow(task, row, () => task.counted?.(row) ?? task.text(row));
}

function beforeQuestion(task: Exclude<Task, TextTask>, { description, examples }: Shown): string {
  return description + examples.map((row) => exampleText(task, row)).join("");
}

/** A solved example with the delimiter after it. */
function exampleText(task: Exclude<Task, TextTask>, row: Row): string {
  return inRow(task, row, () => {
    const { fewShot } = task;
    const delimiter = fewShot?.targetDelimiter ?? task.targetDelimiter ?? defaultDelimiter;
    const { prompt, answer } = solved(task, row);
    // The harness puts no delimiters around an answer without text, unless it is one of choices.
    if (answer === "" && (task.kind !== "choice" || typeof task.prompt(row) !== "string")) {
      return prompt;
    }
    return prompt + delimiter + answer + (fewShot?.delimiter ?? defaultExampleDelimiter);
  });
}

function solved(task: Exclude<Task, TextTask>, row: Row): { prompt: string; answer: string } {
  const { fewShot } = task;
  const own = task.prompt(row);
  const right = task.kind === "choice" ? rightChoice(task, row) : 0;
  const prompt = fewShot?.prompt?.(row) ?? (typeof own === "string" ? own : own[right]);
  const answer =
    fewShot?.target?.(row) ?? ownAnswer(task, row, typeof own === "string" ? right : 0);
  return { prompt: prompt ?? "", answer };
}

function ownAnswer(task: Exclude<Task, TextTask>, row: Row, right: number): string {
  if (task.kind === "continuation") return task.continuation(row);
  if (task.kind === "generation") return task.target(row);
  return task.choices(row)[right] ?? "";
}
