import { createHash } from "node:crypto";
import type { MetricValues } from "./metrics.js";
import { rightChoice } from "./prompt.js";
import { plainBigInts, type Question } from "./questions.js";
import type { EvaluationSample } from "./results.js";
import type { Task } from "./task.js";

interface SampleParts {
  filter: string;
  /** The answer to each request, before and after the filter. */
  raw: readonly unknown[];
  filtered: readonly unknown[];
  values: MetricValues;
}

/** A question with its answers in the harness's layout of logged samples. */
export function makeSample(
  task: Task,
  question: Question,
  { filter, raw, filtered, values }: SampleParts,
): EvaluationSample {
  const { id, row, text } = question;
  const calls: unknown[][] =
    task.kind === "text"
      ? [[text]]
      : task.kind === "generation"
        ? question.answers.slice(0, 1).map(({ prompt, until, maxTokens, temperature }) => [
            prompt,
            {
              until: [...until],
              max_gen_toks: maxTokens,
              do_sample: temperature > 0,
              temperature,
            },
          ])
        : question.likelihoods.map(({ prompt, continuation }) => [prompt, continuation]);
  // The requests of a generation task are repetitions of one, whose answers form one list.
  const grouped = (replies: readonly unknown[]): unknown[][] =>
    task.kind === "generation" ? [[...replies]] : replies.map((reply) => [reply]);
  const target = targetOf(task, question);
  return {
    doc_id: id,
    doc: JSON.parse(JSON.stringify(row, plainBigInts)),
    target,
    arguments: calls,
    resps: grouped(raw),
    filtered_resps: [...filtered],
    filter,
    metrics: Object.keys(values),
    doc_hash: sha256(JSON.stringify(row, plainBigInts, 2)),
    prompt_hash: sha256(String(calls[0]?.[0] ?? "")),
    target_hash: sha256(String(target)),
    ...values,
  };
}

/** The right answer: the index of a choice, or a text. */
function targetOf(task: Task, { row, text }: Question): unknown {
  if (task.kind === "choice") return rightChoice(task, row);
  if (task.kind === "continuation") return task.continuation(row);
  return task.kind === "generation" ? task.target(row) : text;
}

function sha256(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}
