import { textColumn, wrongColumn } from "../columns.js";
import { dropScores } from "../drop-metric.js";
import { strip } from "../python-text.js";
import type { GenerationTask, Row } from "../task.js";

/**
 * DROP: questions about a passage that need counting, sorting or arithmetic. The answer is one or
 * several spans; of the right answers of several annotators the best one counts.
 *
 * lm-evaluation-harness 0.4.13 shows the field names of the column `answer` as the answer of every
 * few-shot example ("number,date,spans,…"). The examples here show the answer itself, so that only
 * scores without examples equal the harness's.
 * @see Dua et al. 2019, arXiv 1903.00161
 */
export const drop: GenerationTask = {
  kind: "generation",
  name: "drop",
  version: 3,
  data: {
    dataset: "EleutherAI/drop",
    folder: "drop",
    split: "validation",
    publishedRows: 9536,
    fewShotSplit: "train",
    columns: ["passage", "question", "answer", "validated_answers"],
  },
  fewShot: { count: 0, sampler: "random", leavesOutQuestion: true },
  targetDelimiter: "",
  prompt: (row) => `${textColumn(row, "passage")} ${textColumn(row, "question")}`,
  target: (row) => ` ${(rightAnswers(row)[0] as readonly string[]).join(", ")}.`,
  until: ["."],
  maxTokens: 256,
  score: (row, answers) => {
    const best = { em: 0, f1: 0 };
    for (const gold of rightAnswers(row)) {
      if (strip(gold[0] as string) === "") continue;
      const { em, f1 } = dropScores(answers, gold);
      best.em = Math.max(best.em, em);
      best.f1 = Math.max(best.f1, f1);
    }
    return best;
  },
  metrics: ["em", "f1"],
};

/** The answers of all annotators: a number, spans, or a date. */
export function rightAnswers(row: Row): (readonly string[])[] {
  const { number, date, spans } = recordOf(row, "validated_answers");
  if (!Array.isArray(number) || !Array.isArray(date) || !Array.isArray(spans)) {
    const expected = "{ number, date, spans }, three lists of one length,";
    throw wrongColumn("validated_answers", expected, row.validated_answers);
  }
  const others = number.map((value, i) => {
    return spansOf("validated_answers", { number: value, date: date[i], spans: spans[i] });
  });
  return [spansOf("answer", recordOf(row, "answer")), ...others];
}

function spansOf(column: string, answer: Readonly<Record<string, unknown>>): readonly string[] {
  const { number, spans, date } = answer;
  if (typeof number === "string" && number !== "") return [number];
  if (Array.isArray(spans) && spans.every((span) => typeof span === "string")) {
    if (spans.length > 0) return spans;
    const { day, month, year } = (date ?? {}) as Readonly<Record<string, unknown>>;
    const parts = [day, month, year];
    if (parts.every((part) => typeof part === "string")) return [strip(parts.join(" "))];
  }
  const expected = "a number (text), spans (texts) or a date { day, month, year }";
  throw wrongColumn(column, expected, answer);
}

function recordOf(row: Row, name: string): Readonly<Record<string, unknown>> {
  const value = row[name];
  if (typeof value === "object" && value !== null && !Array.isArray(value)) {
    return value as Readonly<Record<string, unknown>>;
  }
  throw wrongColumn(name, "{ number, date, spans }", value);
}
