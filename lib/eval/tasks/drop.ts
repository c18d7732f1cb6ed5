import { textColumn, wrongColumn } from "../columns.js";
import { dropScores } from "../drop-metric.js";
import { strip } from "../python-text.js";
import type { GenerationTask, Row } from "../task.js";

/**
 * DROP: questions about a passage that need counting, sorting or arithmetic. The answer is one or
 * several spans; of the right answers of several annotators the best one counts.
 *
 * lm-evaluation-harness 0.4.13 shows the field names of the column `answer` as the answer of every
 * few-shot example ("number,date,spans,…"). This task does the same, so that its scores are equal.
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
    columns: ["passage", "question"],
  },
  fewShot: { count: 0, sampler: "random", leavesOutQuestion: true },
  targetDelimiter: "",
  prompt: (row) => `${textColumn(row, "passage")} ${textColumn(row, "question")}`,
  target: (row) => Object.keys(recordOf(row, "answer")).join(","),
  // Wrong answers show before the model works.
  prepareRows: (rows) => {
    rows.forEach(rightAnswers);
    return rows;
  },
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

/** DROP as TinyLlama's paper asks it: after three examples that show their answers. */
export const dropFewShot: GenerationTask = {
  ...drop,
  name: "drop_fewshot",
  fewShot: { count: 3, sampler: "random" },
  target: (row) => ` ${(rightAnswers(row)[0] as readonly string[]).join(", ")}.`,
};

/** The answers of all annotators: a number, spans, or a date. */
export function rightAnswers(row: Row): (readonly string[])[] {
  if (row.answer === undefined && row.answers_spans !== undefined) return listedAnswers(row);
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

/**
 * The answers in the column `answers_spans` of ucinlp/drop, { spans, types }. It does not tell which
 * annotator gave which span: a number or a date is an answer by itself, and all spans of text
 * together are one.
 */
function listedAnswers(row: Row): (readonly string[])[] {
  const { spans, types } = recordOf(row, "answers_spans", "{ spans, types }");
  const lists = [spans, types].map((list) => (Array.isArray(list) ? list : []));
  const [texts, kinds] = lists as [unknown[], unknown[]];
  const whole = texts.length > 0 && texts.length === kinds.length;
  if (!whole || !texts.every((text) => typeof text === "string")) {
    throw wrongColumn(
      "answers_spans",
      "{ spans, types }, two lists of one length,",
      row.answers_spans,
    );
  }
  const alone = texts.filter((_, i) => kinds[i] !== "span").map((text) => [text]);
  const together = [...new Set(texts.filter((_, i) => kinds[i] === "span"))];
  return together.length > 0 ? [...alone, together] : alone;
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

function recordOf(
  row: Row,
  name: string,
  expected = "{ number, date, spans }",
): Readonly<Record<string, unknown>> {
  const value = row[name];
  if (typeof value === "object" && value !== null && !Array.isArray(value)) {
    return value as Readonly<Record<string, unknown>>;
  }
  throw wrongColumn(name, expected, value);
}
