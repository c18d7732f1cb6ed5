import { open, readFile, rename } from "node:fs/promises";
import { join } from "node:path";
import type { HoldOut } from "./hold-out.js";
import type { Position } from "./pipeline/batch.js";
import { syncFolder } from "./publish.js";
import type { Skipped } from "./readers/input.js";
import type { ShardWriterState } from "./shard-writer.js";

/** What a preparation has of one input. */
export interface SourceCounts {
  documents: number;
  bytes: number;
  tokens: number;
  skipped: Skipped;
}

/** One of the longest documents. */
export interface LongDocument {
  file: number;
  record: number;
  bytes: number;
  tokens: number;
}

/** Where a pass over the documents is, between two of them. */
export interface Progress extends HoldOut {
  threshold: number;
  position: Position;
  sources: SourceCounts[];
  longest: LongDocument[];
  /** Hashes in the file of seen documents. */
  seen: number;
}

/** What is needed to go on. */
export interface Journal extends Progress {
  /** Names input, tokenizer and options: with others, nothing can be gone on with. */
  identity: string;
  writers: { train: ShardWriterState; validation: ShardWriterState };
}

export const journalFile = "prepare-progress.json";
export const seenFile = "prepare-seen.bin";

/** The journal of a folder, or null if there is none for this work. */
export async function readJournal(folder: string, identity: string): Promise<Journal | null> {
  try {
    const journal = JSON.parse(await readFile(join(folder, journalFile), "utf8")) as Journal;
    return journal.identity === identity ? journal : null;
  } catch {
    return null;
  }
}

/** Replaces the journal: a crash leaves the old or the new one. */
export async function writeJournal(folder: string, journal: Journal): Promise<void> {
  const path = join(folder, journalFile);
  const file = await open(`${path}.new`, "w");
  try {
    await file.writeFile(JSON.stringify(journal));
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(`${path}.new`, path);
  await syncFolder(folder);
}
