import { labelIndex, labelledChoices, textColumn } from "../columns.js";
import { stripStart } from "../python-text.js";
import type { ChoiceTask } from "../task.js";

/**
 * OpenBookQA: questions on elementary science with four choices. The book of facts is not shown.
 * @see Mihaylov et al. 2018, arXiv 1809.02789
 */
export const openbookqa: ChoiceTask = {
  kind: "choice",
  name: "openbookqa",
  version: 1,
  data: {
    dataset: "allenai/openbookqa",
    config: "main",
    split: "test",
    publishedRows: 500,
    fewShotSplit: "train",
    columns: ["question_stem", "choices", "answerKey"],
  },
  fewShot: { count: 0, sampler: "random", leavesOutQuestion: false },
  prompt: (row) => textColumn(row, "question_stem"),
  choices: (row) => labelledChoices(row).text,
  answer: (row) => labelIndex(labelledChoices(row).label, stripStart(textColumn(row, "answerKey"))),
  metrics: ["acc", "acc_norm"],
};
