import type { FileHandle } from "node:fs/promises";
import { endianness } from "node:os";
import { DataError } from "../core/errors.js";
import { hostArray } from "../core/host-array.js";
import { openRegular } from "../files/small-file.js";
import { bytesPerId, type TokenDType } from "./dataset-file.js";

/**
 * Number of files kept open at once: large data sets have more shards than a process may open
 * files.
 */
const maxOpenFiles = 64;

interface OpenFile {
  handle: Promise<FileHandle>;
  /** Number of reads in progress. The file stays open until there are none. */
  users: number;
}

/** Opens files when they are read, and closes the least recently used ones. */
export class FilePool {
  readonly #files = new Map<string, OpenFile>(); // in order of last use

  async use<T>(path: string, work: (handle: FileHandle) => Promise<T>): Promise<T> {
    const file = this.#files.get(path) ?? { handle: openRegular(path), users: 0 };
    this.#files.delete(path);
    this.#files.set(path, file);
    file.users++;
    try {
      await this.#closeSpare();
      return await work(await file.handle);
    } finally {
      file.users--;
    }
  }

  /** Closes all files. None may be in use. */
  async close(): Promise<void> {
    const files = [...this.#files.values()];
    this.#files.clear();
    for (const file of files) await (await file.handle.catch(() => null))?.close();
  }

  async #closeSpare(): Promise<void> {
    for (const [path, file] of this.#files) {
      if (this.#files.size <= maxOpenFiles) return;
      if (file.users > 0) continue;
      this.#files.delete(path);
      await (await file.handle.catch(() => null))?.close();
    }
  }
}

/**
 * A file of token ids. It is read by position and never mapped, so that a file truncated while it
 * is open gives an error instead of a SIGBUS.
 */
export class TokenFile {
  readonly path: string;
  readonly tokens: number;
  readonly #dtype: TokenDType;
  readonly #headerBytes: number;
  readonly #vocabSize: number;
  readonly #pool: FilePool;

  constructor(
    path: string,
    tokens: number,
    { dtype, vocabSize }: { dtype: TokenDType; vocabSize: number },
    pool: FilePool,
    headerBytes = 0,
  ) {
    this.path = path;
    this.tokens = tokens;
    this.#pool = pool;
    this.#dtype = dtype;
    this.#vocabSize = vocabSize;
    this.#headerBytes = headerBytes;
  }

  /**
   * Reads ids `start`..`start + into.length`.
   * @throws DataError naming the file, and the offset of an id outside the vocabulary
   */
  async read(start: number, into: Int32Array): Promise<void> {
    const size = bytesPerId[this.#dtype];
    const bytes = hostArray("data", Uint8Array, into.length * size);
    const position = this.#headerBytes + start * size;
    await readBytes(this.#pool, this.path, position, bytes);
    if (endianness() === "BE") swap(bytes, size);
    const ids = size === 2 ? new Uint16Array(bytes.buffer) : new Uint32Array(bytes.buffer);
    for (let i = 0; i < ids.length; i++) {
      const id = ids[i] as number;
      if (id >= this.#vocabSize) {
        throw new DataError(
          `[data] ${this.path}: token ${start + i} (byte ${position + i * size}) is ${id}, ` +
            `outside the vocabulary of ${this.#vocabSize}`,
        );
      }
      into[i] = id;
    }
  }
}

/**
 * Fills `bytes` from a position of a file on.
 * @throws DataError naming a file that cannot be read or ends before
 */
export async function readBytes(
  pool: FilePool,
  path: string,
  position: number,
  bytes: Uint8Array,
): Promise<void> {
  let at = 0;
  try {
    at = await pool.use(path, (handle) => readAt(handle, bytes, position));
  } catch (cause) {
    throw new DataError(`[data] cannot read ${path}: ${(cause as Error).message}`, { cause });
  }
  if (at < bytes.length) {
    throw new DataError(`[data] ${path} ends at byte ${position + at}: it was cut short`);
  }
}

/** Fills `bytes` from a position on. @returns the number of bytes read */
async function readAt(handle: FileHandle, bytes: Uint8Array, position: number): Promise<number> {
  let at = 0;
  while (at < bytes.length) {
    const { bytesRead } = await handle.read(bytes, at, bytes.length - at, position + at);
    if (bytesRead === 0) break;
    at += bytesRead;
  }
  return at;
}

function swap(bytes: Uint8Array, size: number): void {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (size === 2) buffer.swap16();
  else buffer.swap32();
}
