import { integerColumn, textColumn } from "../columns.js";
import type { ChoiceTask } from "../task.js";

/**
 * PIQA: which of two ways reaches a goal in the physical world.
 * @see Bisk et al. 2019, arXiv 1911.11641
 */
export const piqa: ChoiceTask = {
  kind: "choice",
  name: "piqa",
  version: 1,
  data: {
    dataset: "baber/piqa",
    split: "validation",
    publishedRows: 1838,
    fewShotSplit: "train",
    columns: ["goal", "sol1", "sol2", "label"],
  },
  fewShot: { count: 0, sampler: "random", leavesOutQuestion: true },
  prompt: (row) => `Question: ${textColumn(row, "goal")}\nAnswer:`,
  choices: (row) => [textColumn(row, "sol1"), textColumn(row, "sol2")],
  answer: (row) => integerColumn(row, "label"),
  metrics: ["acc", "acc_norm"],
};
