import { labelIndex, labelledChoices, textColumn } from "../columns.js";
import type { ChoiceTask } from "../task.js";

/**
 * ARC: science questions of school exams, in an easy set and a challenge set.
 * @see Clark et al. 2018, arXiv 1803.05457
 */
const arc = (name: string, config: string, publishedRows: number): ChoiceTask => ({
  kind: "choice",
  name,
  version: 1,
  data: {
    dataset: "allenai/ai2_arc",
    config,
    split: "test",
    publishedRows,
    fewShotSplit: "train",
    columns: ["question", "choices", "answerKey"],
  },
  fewShot: { count: 0, sampler: "random", leavesOutQuestion: false },
  prompt: (row) => `Question: ${textColumn(row, "question")}\nAnswer:`,
  choices: (row) => labelledChoices(row).text,
  answer: (row) => labelIndex(labelledChoices(row).label, textColumn(row, "answerKey")),
  metrics: ["acc", "acc_norm"],
});

export const arcEasy = arc("arc_easy", "ARC-Easy", 2376);
export const arcChallenge = arc("arc_challenge", "ARC-Challenge", 1172);
