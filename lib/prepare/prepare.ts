import { access } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import type { z } from "zod";
import { DataError, UsageError } from "../core/errors.js";
import type { DatasetFile } from "../data/dataset-file.js";
import { Tokenizer } from "../data/tokenizer.js";
import { acquireLock } from "../files/lock.js";
import { makeFolder } from "../files/make-folder.js";
import { journalFile } from "./journal.js";
import { MovedDataError } from "./moved.js";
import { settingsOf } from "./options.js";
import { isSystemError } from "./pipeline/errors.js";
import { Preparation } from "./pipeline/preparation.js";
import { checkTarget, publish, removeWorkFolder, workFolder } from "./publish.js";
import type { Input, prepareSchema } from "./schema.js";

/** Options of `prepare` that are not plain values, in addition to those of the schema. */
interface CallOptions {
  /** Files, folders and patterns, read in this order. */
  inputs: readonly (string | Input)[];
  /** A tokenizer, or its path. */
  tokenizer: Tokenizer | string;
  /** Called as the work proceeds. Default: nothing is called. */
  onProgress?: ((progress: PrepareProgress) => void) | undefined;
  /** Stops the work. A later call with the same options resumes it. Default: nothing stops it. */
  signal?: AbortSignal | undefined;
}

/** Inputs, output and settings of `prepare`. */
export interface PrepareOptions
  extends CallOptions,
    Omit<z.input<typeof prepareSchema>, keyof CallOptions> {}

/** How far the work of `prepare` is. */
export interface PrepareProgress {
  documents: number;
  /** Stored bytes of input: read so far, and in total. */
  bytes: number;
  totalBytes: number;
  /** UTF-8 bytes of the documents. */
  textBytes: number;
  tokens: number;
  /** Documents already completed by an earlier, unfinished call. */
  resumedDocuments: number;
}

/** The data set that `prepare` made, and what it left out. */
export interface PrepareResult {
  folder: string;
  dataset: DatasetFile;
  /** Notes for the user that are not errors. */
  warnings: string[];
  /** Files and folders that were not read: for each input, lines with counts and names. */
  passedOver: { path: string; lines: string[] }[];
  /** The longest documents, longest first. */
  longest: { origin: string; bytes: number; tokens: number }[];
  /** Documents already completed by an earlier, unfinished call. */
  resumedDocuments: number;
}

/**
 * Turns text into token shards.
 *
 * Equal input gives equal bytes, whatever the number of workers and however often the work was
 * interrupted. A call with the same options resumes an interrupted one if the files read so far are
 * unchanged. Unfinished work of other options or files is discarded only with `startOver`.
 *
 * Whether a document is held out depends on its own bytes alone (their hash). Adding or reordering
 * documents therefore moves none from one split to the other, and copies of a document stay
 * together. If one split would be empty with two or more documents, the threshold is moved just
 * past the nearest one.
 *
 * Memory does not grow with the input, except for the list of its files (about 300 bytes each) and,
 * for deduplication, up to 23 bytes per document. A document in a text file may have any length. A
 * record is held whole, and so is a row group's column of lists in a parquet file with pages of
 * version 1.
 *
 * @throws DataError for missing, empty, unreadable or repetitive text
 * @throws UsageError if `out` cannot be used, or if unfinished work of other options or files lies
 *   next to it
 */
export async function prepare(options: PrepareOptions): Promise<PrepareResult> {
  const settings = settingsOf(options);
  const tokenizer =
    typeof options.tokenizer === "string"
      ? await Tokenizer.load(options.tokenizer)
      : options.tokenizer;
  const out = resolve(options.out);
  const paths = settings.inputs.map((input) => input.path);
  await checkTarget(out, paths, options.overwrite ?? false);
  await makeFolder(dirname(out)).catch((cause: NodeJS.ErrnoException) => {
    throw new UsageError(`[prepare] cannot make ${dirname(out)}: ${cause.message}`, { cause });
  });
  const lock = await acquireLock(`${out}.lock`, `[prepare] ${options.out}`);
  const folder = workFolder(out);
  const work = new Preparation(folder, tokenizer, settings, options);
  try {
    options.signal?.throwIfAborted();
    const result = await work.run();
    await work.expectUnmoved();
    await publish(folder, out);
    return { ...result, folder: options.out };
  } catch (error) {
    // The folder may have been replaced, which the system reports as ENOENT.
    const moved = await work.expectUnmoved().catch((why: unknown) => why);
    if (moved instanceof MovedDataError) throw moved;
    // A journal may stand for days of work, and the user may be able to fix the error. Without a
    // journal the folder is useless.
    const kept = await mayHaveJournal(folder);
    if (!kept) await removeWorkFolder(folder).catch(() => {});
    throw explained(error, folder, kept);
  } finally {
    await work.close();
    await lock.release();
  }
}

/** Whether a journal may exist. Also true if the file system gives no answer. */
async function mayHaveJournal(folder: string): Promise<boolean> {
  return await access(join(folder, journalFile)).then(
    () => true,
    (error: NodeJS.ErrnoException) => error.code !== "ENOENT",
  );
}

/**
 * Wraps errors of the file system (a full disk, say) as library errors, and tells which work can be
 * resumed.
 */
function explained(error: unknown, folder: string, kept: boolean): unknown {
  if (isSystemError(error)) {
    return new DataError(
      `[prepare] cannot write ${folder}: ${(error as Error).message}; the same call later goes on with it`,
      { cause: error },
    );
  }
  if (!(error instanceof DataError) || !kept) return error;
  return new DataError(`${error.message}\n  what is done so far stays in ${folder}`, {
    cause: error.cause,
  });
}
