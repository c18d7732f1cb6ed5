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

/** Counts of one input's documents, so far. */
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

/** Position of a pass over the documents, between two of them. */
export interface PassProgress extends HoldOut {
  threshold: number;
  position: Position;
  sources: SourceCounts[];
  longest: LongDocument[];
  /** Number of hashes in the file of seen documents. */
  seen: number;
}

/** A position from which a pass can resume. */
export interface PassCheckpoint extends PassProgress {
  /** Fingerprint of the files before the position, and of the file that it is in. */
  read: string;
  writers: { train: ShardWriterState; validation: ShardWriterState };
}

/** Options that only decide whether something is an error. */
type Tolerance = "invalidUtf8" | "badRecords" | "maxRunShare";

/** Options that decide which tokens a text becomes. */
export interface DecidingOptions extends Omit<PrepareSettings, Tolerance | "skipUnreadable"> {
  /** Hash of the template that writes chats. */
  chatTemplate?: string;
}

/** Everything that decides whether a later call can resume a preparation's work. */
export interface WorkFacts extends Pick<PrepareSettings, Tolerance> {
  /** Fingerprint of the tokenizer and of all other options. */
  identity: string;
  /** The options behind `identity`, to report which of them differ. */
  options: DecidingOptions;
  /** Hash of the tokenizer's file. */
  tokenizer: string;
  /** Fingerprint of all input files. */
  files: string;
}

/** Everything needed to resume a preparation. */
export interface Journal extends WorkFacts {
  /**
   * The latest checkpoint, then the latest one between two files. The second is for the case that
   * the current file is replaced by a sound one.
   */
  checkpoints: PassCheckpoint[];
}

export const journalFile = "prepare-progress.json";
export const seenFile = "prepare-seen.bin";

/** Files that exist in a data set's folder only while it is being made. */
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
 * Finds the latest checkpoint that a fresh run with the present options and files would also pass
 * through. Files after it may have changed. Tolerance options may have been relaxed, because no
 * error was met before the checkpoint.
 * @param readUpTo fingerprint of the files up to a position, as they are now
 * @returns the checkpoint, or the reason in words why there is none
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
    // A moved threshold follows from the hashes of all files.
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
  // Inputs are too long for a message.
  const told = differing.map((name) =>
    name === "inputs" ? "other inputs" : changed(name, journal.options[name], work.options[name]),
  );
  if (journal.tokenizer !== work.tokenizer) told.push("another tokenizer");
  return told.join("; ") || "another version of LlamaForge made it";
}

function changed(option: string, before: unknown, now: unknown): string {
  return `${optionName(option)} was ${JSON.stringify(before)} and is ${JSON.stringify(now)}`;
}

/** Replaces the journal atomically: a crash leaves the old one or the new one. */
export async function writeJournal(folder: string, journal: Journal): Promise<void> {
  const path = join(folder, journalFile);
  await replaceFile(path, JSON.stringify(journal), `${path}.new`);
  await syncFolder(folder);
}
