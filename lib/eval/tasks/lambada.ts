import { textColumn } from "../columns.js";
import type { ContinuationTask, Row } from "../task.js";

/**
 * LAMBADA in OpenAI's form: the last word of a passage, which only the whole passage tells.
 * @see Paperno et al. 2016, arXiv 1606.06031
 */
export const lambadaOpenai: ContinuationTask = {
  kind: "continuation",
  name: "lambada_openai",
  version: 1,
  data: {
    dataset: "EleutherAI/lambada_openai",
    config: "default",
    split: "test",
    publishedRows: 5153,
    columns: ["text"],
  },
  fewShot: { count: 0, sampler: "random", leavesOutQuestion: false },
  prompt: (row) => split(row).before,
  // The space is part of the answer. An example has the target delimiter before it too.
  continuation: (row) => ` ${split(row).word}`,
  metrics: ["perplexity", "acc"],
};

function split(row: Row): { before: string; word: string } {
  const text = textColumn(row, "text");
  const space = text.lastIndexOf(" ");
  return { before: text.slice(0, Math.max(0, space)), word: text.slice(space + 1) };
}
