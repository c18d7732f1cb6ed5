import { integerColumn, textColumn } from "../columns.js";
import type { ChoiceTask } from "../task.js";

const choices = ["no", "yes"];

/**
 * BoolQ: questions of search engine users, to be answered with yes or no from a passage.
 * @see Clark et al. 2019, arXiv 1905.10044
 */
export const boolq: ChoiceTask = {
  kind: "choice",
  name: "boolq",
  version: 2,
  data: {
    dataset: "aps/super_glue",
    config: "boolq",
    split: "validation",
    publishedRows: 3270,
    fewShotSplit: "train",
    columns: ["passage", "question", "label"],
  },
  fewShot: { count: 0, sampler: "random", leavesOutQuestion: true },
  prompt: (row) =>
    `${textColumn(row, "passage")}\nQuestion: ${textColumn(row, "question")}?\nAnswer:`,
  choices: () => choices,
  answer: (row) => integerColumn(row, "label"),
  metrics: ["acc"],
};
