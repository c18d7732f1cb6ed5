import { textColumn, wrongColumn } from "../columns.js";
import { strip } from "../python-text.js";
import type { ChoiceTask, Row } from "../task.js";

/**
 * WinoGrande: which of two nouns fills the gap of a sentence. The rest of the sentence is scored
 * after each noun in its place (partial evaluation), so that both scores are of one text.
 * @see Sakaguchi et al. 2019, arXiv 1907.10641
 */
export const winogrande: ChoiceTask = {
  kind: "choice",
  name: "winogrande",
  version: 1,
  data: {
    dataset: "allenai/winogrande",
    config: "winogrande_xl",
    split: "validation",
    publishedRows: 1267,
    fewShotSplit: "train",
    columns: ["sentence", "option1", "option2", "answer"],
  },
  fewShot: { count: 0, sampler: "random", leavesOutQuestion: true },
  prompt: filledSentences,
  choices: (row) => [restOfSentence(row)],
  answer: winograndeAnswer,
  metrics: ["acc"],
};

/** The sentence up to its gap, with each of the options in the gap. */
export function filledSentences(row: Row): [string, string] {
  const { before } = parts(row);
  return [before + textColumn(row, "option1"), before + textColumn(row, "option2")];
}

export function restOfSentence(row: Row): string {
  return strip(parts(row).after);
}

/** Index of the right option. */
export function winograndeAnswer(row: Row): number {
  const answer = textColumn(row, "answer");
  if (answer === "1" || answer === "2") return Number(answer) - 1;
  throw wrongColumn("answer", '"1" or "2"', answer);
}

function parts(row: Row): { before: string; after: string } {
  const sentence = textColumn(row, "sentence");
  const gap = sentence.indexOf("_");
  if (gap < 0) throw wrongColumn("sentence", "a text with a gap (_)", sentence);
  return { before: sentence.slice(0, gap), after: sentence.slice(gap + 1) };
}
