/**
 * Reading files that somebody else may have made: never a hang, never more memory than was said.
 *
 * A path that a user names, or a name in a folder that they name, may be a FIFO (opening it waits for ever), a device without
 * end (/dev/zero), a socket, a folder, or lie on a network disk that has stopped to answer. Everything here opens without
 * waiting, asks what was opened, and reads regular files alone.
 */
import {
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  openSync,
  readSync,
  type Stats,
} from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { StorageError, UsageError } from "../core/errors.js";

/** Nothing about the system's calls: the file itself is not one that is read. Callers make it an error of their kind. */
export class FileError extends Error {
  override readonly name = "FileError";
}

export interface SmallFileOptions {
  /** The most bytes it may have. */
  limit: number;
  /** Whether a symbolic link as the last part of the path is followed (true). */
  followLinks?: boolean;
  /** Whether it may have no bytes at all (false). */
  mayBeEmpty?: boolean;
  /** How long storage may take to answer, in milliseconds (see `storageWaitMs`). */
  waitMs?: number;
}

/**
 * How long opening or reading a small file may take. Disks that sleep need some 15 s to start; storage that fetches files from
 * tape may need LLAMAFORGE_STORAGE_SECONDS.
 * @throws UsageError if that variable holds no number of seconds
 */
export function storageWaitMs(): number {
  const { LLAMAFORGE_STORAGE_SECONDS: given } = process.env;
  if (given === undefined || given === "") return 60_000;
  const seconds = Number(given);
  if (seconds > 0 && seconds <= 86_400) return seconds * 1000;
  throw new UsageError(
    `LLAMAFORGE_STORAGE_SECONDS: expected seconds above 0, at most 86400, got ${JSON.stringify(given)}`,
  );
}

/** Opening never waits for another process. That no child process gets the file (O_CLOEXEC) is seen to by Node. */
const readFlags = constants.O_RDONLY | constants.O_NOCTTY;

/**
 * The bytes of a regular file.
 * @throws FileError for anything but a regular file, one that is empty, too large, or changes while it is read;
 * StorageError if the storage does not answer in time: then a read is under way that may never end; the system's own error
 * if it cannot be opened
 */
export async function readSmallFile(path: string, options: SmallFileOptions): Promise<Buffer> {
  const handle = await openRegular(path, options);
  try {
    return await answered(path, options.waitMs, async () => {
      const { size } = await handle.stat();
      checkSize(size, options);
      // One byte more than it should have: a file that grows meanwhile is refused, not cut.
      const bytes = Buffer.allocUnsafeSlow(size + 1);
      let filled = 0;
      while (filled < bytes.length) {
        const { bytesRead } = await handle.read(bytes, filled, bytes.length - filled, filled);
        if (bytesRead === 0) break;
        filled += bytesRead;
      }
      return whole(bytes, filled, size);
    });
  } finally {
    // Not awaited: closing waits for the read that does not end.
    handle.close().catch(() => {});
  }
}

/** As `readSmallFile`, for callers that cannot wait for a promise. Storage that does not answer holds them up. */
export function readSmallFileSync(path: string, options: SmallFileOptions): Buffer {
  const descriptor = opening(path, () => openSync(path, flagsOf(options)));
  try {
    const stats = fstatSync(descriptor);
    checkKind(stats);
    checkSize(stats.size, options);
    const bytes = Buffer.allocUnsafeSlow(stats.size + 1);
    let filled = 0;
    while (filled < bytes.length) {
      const count = readSync(descriptor, bytes, filled, bytes.length - filled, filled);
      if (count === 0) break;
      filled += count;
    }
    return whole(bytes, filled, stats.size);
  } finally {
    closeSync(descriptor);
  }
}

/**
 * Opens a regular file of any size, to read it in parts.
 * @throws FileError, StorageError or the system's error, as `readSmallFile`
 */
export async function openRegular(
  path: string,
  options: Pick<SmallFileOptions, "followLinks" | "waitMs"> & { flags?: number } = {},
): Promise<FileHandle> {
  const opened = (async () => {
    const handle = await open(path, flagsOf(options)).catch((error: unknown) => {
      throw explainOpening(path, error);
    });
    try {
      checkKind(await handle.stat());
    } catch (error) {
      await handle.close();
      throw error;
    }
    return handle;
  })();
  try {
    return await answered(path, options.waitMs, () => opened);
  } catch (error) {
    // One that opens after all is not left open.
    if (error instanceof StorageError) opened.then((handle) => handle.close()).catch(() => {});
    throw error;
  }
}

/**
 * Waits for storage, within a limit.
 * @throws StorageError once that has passed
 */
export async function answered<T>(
  path: string,
  waitMs = storageWaitMs(),
  work: () => Promise<T>,
): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      const seconds = waitMs / 1000;
      reject(new StorageError(`${path}: no answer for ${seconds} s: the storage does not answer`));
    }, waitMs);
  });
  try {
    return await Promise.race([work(), late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Text of valid UTF-8. @throws FileError naming the fault */
export function utf8Of(bytes: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new FileError("it is not UTF-8 text", { cause });
  }
}

function flagsOf({
  followLinks = true,
  flags = readFlags,
}: Pick<SmallFileOptions, "followLinks"> & { flags?: number }): number {
  return flags | constants.O_NONBLOCK | (followLinks ? 0 : constants.O_NOFOLLOW);
}

function opening(path: string, call: () => number): number {
  try {
    return call();
  } catch (error) {
    throw explainOpening(path, error);
  }
}

/** Opening a socket, or a FIFO for writing, gives ENXIO, which says nothing to most people; so with links that are refused. */
function explainOpening(path: string, error: unknown): unknown {
  const { code } = error as NodeJS.ErrnoException;
  if (code !== "ENXIO" && code !== "ELOOP") return error;
  let stats: Stats;
  try {
    stats = lstatSync(path);
  } catch {
    return error;
  }
  if (code === "ELOOP" && !stats.isSymbolicLink()) return error;
  if (stats.isFile()) return error;
  const kind = kindOf(stats);
  return new FileError(`it is ${kind}, and only regular files are read`, { cause: error });
}

function checkKind(stats: Stats): void {
  if (stats.isFile()) return;
  throw new FileError(`it is ${kindOf(stats)}, not a regular file`);
}

/** What lies at a path, in words. */
export function kindOf(stats: Stats): string {
  if (stats.isFile()) return "a file";
  if (stats.isDirectory()) return "a folder";
  if (stats.isFIFO()) return "a FIFO";
  if (stats.isSocket()) return "a socket";
  if (stats.isSymbolicLink()) return "a symbolic link";
  return "a device";
}

function checkSize(size: number, { limit, mayBeEmpty = false }: SmallFileOptions): void {
  if (size > limit) throw new FileError(`it has ${size} bytes, more than the limit of ${limit}`);
  if (size === 0 && !mayBeEmpty) throw new FileError("it is empty");
}

function whole(bytes: Buffer, filled: number, size: number): Buffer {
  if (filled !== size) throw new FileError("it was changed while being read");
  return bytes.subarray(0, filled);
}

/** The most bytes that files of each kind may have: many times what the largest known ones have. */
export const sizeLimits = {
  /** A run's or a data set's recipe. */
  recipe: 2 ** 20,
  /** config.json of a model. */
  modelConfig: 2 ** 24,
  /** dataset.json: 300 bytes a shard. */
  dataset: 2 ** 28,
  /** A tokenizer.json; those of 256,000 tokens have some 35 MB. */
  tokenizer: 2 ** 28,
  /** What lies beside a tokenizer.json. */
  tokenizerConfig: 2 ** 25,
  /** run.json. */
  run: 2 ** 26,
  /** The journal of a preparation. */
  journal: 2 ** 28,
  /** Who holds a lock. */
  lock: 2 ** 16,
} as const;
