import { usableThreads } from "../../core/machine-limits.js";
import { readTasks } from "../pipeline/batch.js";
import { readInOrder } from "../pipeline/reader-pool.js";
import type { FoundInput } from "../readers/find.js";
import type { Input, ReaderOptions } from "../readers/input.js";
import { type SplitRuleName, splitRules } from "./split-rules.js";
import { WordCounts, type WordLimits } from "./word-counts.js";

/** How far the reading is. */
export interface ReadingProgress {
  documents: number;
  /** Stored bytes of input: read so far, and in total. */
  bytes: number;
  totalBytes: number;
  /** UTF-8 bytes of the documents. */
  textBytes: number;
}

/** The words of all documents, and what was read. */
export interface CountedWords extends ReadingProgress {
  words: WordCounts;
  /** Records that are left out. */
  bad: number;
}

/** Input smaller than this is read before the first thread would have started. */
const smallInput = 2 ** 22;
const compiled = import.meta.url.endsWith(".js");

/**
 * Counts the words of all documents in a stream. Memory holds the different words and a few batches.
 * @param onProgress called after each batch of about a megabyte
 */
export async function countWords(
  sources: readonly { input: Input; found: FoundInput }[],
  rule: SplitRuleName,
  options: ReaderOptions,
  limits: WordLimits,
  onProgress: (progress: ReadingProgress) => void,
): Promise<CountedWords> {
  const words = new WordCounts(limits);
  const add = wordAdder(words, rule);
  const files = sources.flatMap(({ found }) => found.files);
  const before = [0];
  for (const { bytes } of files) before.push((before.at(-1) as number) + bytes);
  const totalBytes = before.at(-1) as number;
  const threads = compiled && totalBytes >= smallInput ? Math.min(4, usableThreads()) : 0;
  const lists = sources.map(({ input, found }) => ({ input, files: found.files }));
  const tasks = readTasks(lists, options, { file: 0, record: 0, byte: 0 }, null);
  const progress: ReadingProgress = { documents: 0, bytes: 0, totalBytes, textBytes: 0 };
  let bad = 0;
  for await (const batch of readInOrder(tasks, threads)) {
    const bytes = Buffer.from(batch.text.buffer, batch.text.byteOffset, batch.text.byteLength);
    let from = 0;
    for (const end of batch.ends) {
      add(bytes.toString("utf8", from, end));
      from = end;
    }
    bad += batch.skipped.bad;
    progress.documents += batch.sizes.length;
    progress.textBytes += bytes.length;
    progress.bytes = (before[batch.at.file] as number) + batch.at.consumed;
    onProgress({ ...progress });
  }
  return { ...progress, words, bad };
}

/** A function that counts the words of a text. */
export function wordAdder(words: WordCounts, rule: SplitRuleName): (text: string) => void {
  const expression = new RegExp(splitRules[rule].expression, "uy");
  return (text) => {
    expression.lastIndex = 0;
    for (let from = 0; expression.test(text); from = expression.lastIndex) {
      words.add(text, from, expression.lastIndex);
    }
  };
}
