import { integerColumn, textColumn, textsColumn } from "../columns.js";
import { capitalize, strip } from "../python-text.js";
import type { ChoiceTask, Row } from "../task.js";

/**
 * HellaSwag: which of four endings continues a description of everyday events.
 * @see Zellers et al. 2019, arXiv 1905.07830
 */
export const hellaswag: ChoiceTask = {
  kind: "choice",
  name: "hellaswag",
  version: 1,
  data: {
    dataset: "Rowan/hellaswag",
    split: "validation",
    publishedRows: 10042,
    fewShotSplit: "train",
    columns: ["activity_label", "ctx_a", "ctx_b", "endings", "label"],
  },
  fewShot: { count: 0, sampler: "random", leavesOutQuestion: true },
  prepareRows: cleanedHellaswag,
  prompt: (row) => textColumn(row, "query"),
  choices: (row) => textsColumn(row, "choices"),
  answer: (row) => integerColumn(row, "gold"),
  metrics: ["acc", "acc_norm"],
};

/** Adds the columns `query`, `choices` and `gold`. */
export function cleanedHellaswag(rows: readonly Row[]): Row[] {
  return rows.map((row) => {
    const context = `${textColumn(row, "ctx_a")} ${capitalize(textColumn(row, "ctx_b"))}`;
    return {
      ...row,
      query: withoutMarks(`${textColumn(row, "activity_label")}: ${context}`),
      choices: textsColumn(row, "endings").map(withoutMarks),
      gold: integerColumn(row, "label"),
    };
  });
}

/** Removes the marks in brackets that WikiHow's part of the rows has. */
function withoutMarks(text: string): string {
  return strip(text)
    .replaceAll(" [title]", ". ")
    .replace(/\[[^\n]*?\]/g, "")
    .replaceAll("  ", " ");
}
