/**
 * Reads files that somebody else may have made, without a hang and with bounded memory.
 *
 * A path that a user names, or a name in a user's folder, may be a FIFO (opening it waits forever),
 * an endless device (/dev/zero), a socket or a folder, or lie on a network disk that no longer
 * answers. All functions here open without waiting, ask what was opened, and read only regular
 * files.
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

/**
 * The file itself is refused, as opposed to a failed system call. Callers turn it into an error of
 * their own kind.
 */
export class FileError extends Error {
  override readonly name = "FileError";
}

export interface SmallFileOptions {
  /** Largest size in bytes. */
  limit: number;
  /** Follow a symbolic link in the last part of the path. Default: true. */
  followLinks?: boolean;
  /** Accept an empty file. Default: false. */
  mayBeEmpty?: boolean;
  /** Time that storage may take to answer, in milliseconds. Default: `storageWaitMs()`. */
  waitMs?: number;
}

/**
 * Time that opening or reading a small file may take, in milliseconds. Sleeping disks need some 15
 * s to start. Storage that fetches files from tape may need LLAMAFORGE_STORAGE_SECONDS.
 * @throws UsageError if that variable is not a number of seconds
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

/**
 * Opening never waits for another process. Node itself sets O_CLOEXEC, so no child process inherits
 * the file.
 */
const readFlags = constants.O_RDONLY | constants.O_NOCTTY;

/**
 * Reads the bytes of a regular file.
 * @throws FileError for anything but a regular file, and for a file that is empty, too large, or
 *   changes while it is read
 * @throws StorageError if the storage does not answer in time; a read that may never end is then in
 *   progress
 * @throws the system's error if the file cannot be opened
 */
export async function readSmallFile(path: string, options: SmallFileOptions): Promise<Buffer> {
  const handle = await openRegular(path, options);
  try {
    return await answered(path, options.waitMs, async () => {
      const { size } = await handle.stat();
      checkSize(size, options);
      // One byte more than the size, so that a file that grows meanwhile is refused and not
      // truncated.
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
    // Not awaited, because closing waits for a read that may never end.
    handle.close().catch(() => {});
  }
}

/**
 * `readSmallFile` for callers that cannot wait for a promise. Storage that does not answer blocks
 * them.
 */
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
 * @throws FileError, StorageError or the system's error, like `readSmallFile`
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
    // A file that opens after the time limit is closed again.
    if (error instanceof StorageError) opened.then((handle) => handle.close()).catch(() => {});
    throw error;
  }
}

/**
 * Waits for storage, up to a time limit.
 * @throws StorageError when the limit has passed
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

/** Decodes valid UTF-8. @throws FileError naming the fault */
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

/**
 * Explains errors of opening. A socket, or a FIFO opened for writing, gives ENXIO, which means
 * nothing to most people; a refused link gives a similarly obscure code.
 */
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

/** Describes in words what a path leads to. */
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

/** Largest size in bytes of each kind of file: many times that of the largest known ones. */
export const sizeLimits = {
  /** A run's or a data set's recipe. */
  recipe: 2 ** 20,
  /** config.json of a model. */
  modelConfig: 2 ** 24,
  /** dataset.json: 300 bytes a shard. */
  dataset: 2 ** 28,
  /** A tokenizer.json. Those with 256,000 tokens take some 35 MB. */
  tokenizer: 2 ** 28,
  /** The companion files of a tokenizer.json. */
  tokenizerConfig: 2 ** 25,
  /** run.json. */
  run: 2 ** 26,
  /** The journal of a preparation. */
  journal: 2 ** 28,
  /** A lock file. */
  lock: 2 ** 16,
} as const;
