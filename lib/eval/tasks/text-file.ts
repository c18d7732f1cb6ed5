import { textColumn } from "../columns.js";
import type { TextTask } from "../task.js";

/**
 * The likelihood of a file of one's own: a text file as one document, or the column `text` of a
 * JSON Lines or Parquet file.
 * @param path the file; the task is named `text:PATH`
 */
export function textFileTask(path: string): TextTask {
  return {
    kind: "text",
    name: `text:${path}`,
    version: 1,
    data: { dataset: path, files: { test: path }, split: "test", columns: ["text"] },
    text: (row) => textColumn(row, "text"),
    metrics: ["token_perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"],
  };
}
