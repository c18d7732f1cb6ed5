import { join } from "node:path";
import { optionName } from "../core/option-names.js";
import { replaceFile } from "../files/replace-file.js";
import { readSmallFile, sizeLimits } from "../files/small-file.js";
import { syncFolder } from "../files/sync-folder.js";
import type { PrepareSettings } from "./options.js";
import type { Position } from "./pipeline/batch.js";
import type { Skipped } from "./readers/input.js";
import { shardLogFile } from "./shard-log.js";
import type { ShardWriterState } from "./shard-writer.js";
import type { HoldOut } from "./validation-split.js";

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
export interface PassProgress extends HoldOut {
  threshold: number;
  position: Position;
  sources: SourceCounts[];
  longest: LongDocument[];
  /** Hashes in the file of seen documents. */
  seen: number;
}

/** A place that a pass can go on from. */
export interface PassCheckpoint extends PassProgress {
  /** Names the files before it, and the one that it is in. */
  read: string;
  writers: { train: ShardWriterState; validation: ShardWriterState };
}

/** Options that decide only what is an error. */
type Tolerance = "invalidUtf8" | "badRecords" | "maxRunShare";

/** Options that decide what is made of a text. */
export type DecidingOptions = Omit<PrepareSettings, Tolerance | "skipUnreadable">;

/** What of a preparation decides whether another one can go on with its work. */
export interface WorkFacts extends Pick<PrepareSettings, Tolerance> {
  /** Names tokenizer and all other options. */
  identity: string;
  /** Those options, to tell which of them differ. */
  options: DecidingOptions;
  /** Hash of the tokenizer's file. */
  tokenizer: string;
  /** Names all files. */
  files: string;
}

/** What is needed to go on. */
export interface Journal extends WorkFacts {
  /** The latest one; then the latest between two files, for the case that the file under way is replaced by a sound one. */
  checkpoints: PassCheckpoint[];
}

export const journalFile = "prepare-progress.json";
export const seenFile = "prepare-seen.bin";

/** Files that a data set has only while it is being made. */
export const workFiles: readonly string[] = [
  journalFile,
  `${journalFile}.new`,
  shardLogFile,
  seenFile,
];

/** The journal of a folder, or null if there is none. */
export async function readJournal(folder: string): Promise<Journal | null> {
  try {
    const file = join(folder, journalFile);
    const bytes = await readSmallFile(file, { limit: sizeLimits.journal });
    const journal = JSON.parse(bytes.toString("utf8")) as Journal;
    return Array.isArray(journal.checkpoints) ? journal : null;
  } catch {
    return null;
  }
}

/**
 * Where to go on: the latest checkpoint that clean work would have come through. So files behind it may have changed, and
 * what was an error may now be none: it was not met before.
 * @param readUpTo names the files up to a position as they are now
 * @returns or else why there is no such checkpoint, in words
 */
export function checkpointFor(
  journal: Journal,
  work: WorkFacts,
  fraction: number,
  readUpTo: (position: Position) => string,
): PassCheckpoint | string {
  if (journal.identity !== work.identity) return differences(journal, work);
  for (const option of ["invalidUtf8", "badRecords"] as const) {
    if (journal[option] !== work[option] && journal[option] !== "error") {
      return changed(option, journal[option], work[option]);
    }
  }
  if (journal.maxRunShare > work.maxRunShare) {
    return changed("maxRunShare", journal.maxRunShare, work.maxRunShare);
  }
  const fits = ({ threshold, position, read }: PassCheckpoint): boolean =>
    // A threshold that was moved follows from all files.
    (threshold === fraction || journal.files === work.files) && readUpTo(position) === read;
  return journal.checkpoints.find(fits) ?? "files that it has read have changed";
}

function differences(journal: Journal, work: WorkFacts): string {
  if (journal.options === undefined)
    return "other options or another tokenizer, by an earlier version";
  const names = Object.keys(work.options) as (keyof DecidingOptions)[];
  const differing = names.filter(
    (name) => JSON.stringify(journal.options[name]) !== JSON.stringify(work.options[name]),
  );
  // Inputs are long.
  const told = differing.map((name) =>
    name === "inputs" ? "other inputs" : changed(name, journal.options[name], work.options[name]),
  );
  if (journal.tokenizer !== work.tokenizer) told.push("another tokenizer");
  return told.join("; ") || "another version of LlamaForge made it";
}

function changed(option: string, before: unknown, now: unknown): string {
  return `${optionName(option)} was ${JSON.stringify(before)} and is ${JSON.stringify(now)}`;
}

/** Replaces the journal: a crash leaves the old or the new one. */
export async function writeJournal(folder: string, journal: Journal): Promise<void> {
  const path = join(folder, journalFile);
  await replaceFile(path, JSON.stringify(journal), `${path}.new`);
  await syncFolder(folder);
}
