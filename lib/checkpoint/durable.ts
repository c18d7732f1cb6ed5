/** Small files and folders that survive a crash, and reading of untrusted small files. */
import { CheckpointError, StorageError } from "../core/errors.js";
import { FileError, readSmallFile as readRegular } from "../files/small-file.js";
import { type Digest, guarded, io, pieceBytes } from "./native-io.js";

/** Writes bytes in pieces, so that no single copy blocks the event loop for long. */
export async function writePieces(
  file: { write(bytes: Uint8Array): Promise<void> },
  bytes: Uint8Array,
): Promise<void> {
  for (let start = 0; start < bytes.length; start += pieceBytes) {
    await file.write(bytes.subarray(start, start + pieceBytes));
  }
}

/**
 * Creates a file, lets `body` write it, and fsyncs it. The name must be free. After a failure the
 * caller removes the remains (the save protocol removes the whole folder).
 */
export async function writeDurably(
  path: string,
  body: (write: (bytes: Uint8Array) => Promise<void>) => Promise<void>,
): Promise<Digest> {
  return await guarded(`writing ${path}`, async () => {
    const file = new io.DurableFile(path);
    await file.open();
    try {
      await body((bytes) => writePieces(file, bytes));
      return await file.finish();
    } catch (error) {
      await file.abandon();
      throw error;
    }
  });
}

/** Creates a file from bytes, or from text as UTF-8, and fsyncs it. */
export async function writeFileDurably(
  path: string,
  content: string | Uint8Array,
): Promise<Digest> {
  const bytes = typeof content === "string" ? new TextEncoder().encode(content) : content;
  return await writeDurably(path, (write) => write(bytes));
}

/**
 * Converts a value to JSON text. Values that JSON would silently change (NaN, infinities, undefined
 * in a list, functions, big integers) are an error with their path: a state that loads differently
 * than it was saved is worse.
 */
export function toJson(what: string, value: unknown): string {
  checkJson(what, value, new Set());
  return `${JSON.stringify(value, null, 2)}\n`;
}

function checkJson(path: string, value: unknown, parents: Set<object>): void {
  if (value === null || typeof value === "string" || typeof value === "boolean") return;
  if (typeof value === "number") {
    if (Number.isFinite(value)) return;
    throw new CheckpointError(`${path} is ${value}, which JSON cannot hold`);
  }
  if (typeof value !== "object") {
    throw new CheckpointError(`${path} is of type ${typeof value}, which JSON cannot hold`);
  }
  const plain =
    Array.isArray(value) || [Object.prototype, null].includes(Object.getPrototypeOf(value));
  if (!plain) {
    const kind = value.constructor?.name ?? "foreign object";
    throw new CheckpointError(`${path} is a ${kind}: expected plain objects and arrays`);
  }
  if (parents.has(value)) throw new CheckpointError(`${path} contains itself`);
  parents.add(value);
  for (const [key, member] of Object.entries(value)) {
    if (member === undefined && !Array.isArray(value)) continue; // left out, as JSON does
    checkJson(`${path}.${key}`, member, parents);
  }
  parents.delete(value);
}

export interface FollowLinks {
  /** Follow symbolic links, which hub caches consist of. Default: false. */
  followLinks?: boolean;
}

/**
 * Reads an untrusted file of at most `limit` bytes. It must be a regular file, and no link unless
 * `followLinks` is set.
 * @throws CheckpointError naming the file; its cause is a StorageError if the storage does not
 *   answer
 */
export async function readSmallFile(
  path: string,
  limit: number,
  { followLinks = false }: FollowLinks = {},
): Promise<Uint8Array> {
  return await guarded(`reading ${path}`, () =>
    readRegular(path, { limit, followLinks }).catch((cause: Error) => {
      if (!(cause instanceof FileError || cause instanceof StorageError)) throw cause;
      throw new CheckpointError(`cannot read ${path}: ${cause.message}`, { cause });
    }),
  );
}

/** Reads a file with `readSmallFile` and parses it as JSON in valid UTF-8. */
export async function readJson(
  path: string,
  limit: number,
  options: FollowLinks = {},
): Promise<unknown> {
  const bytes = await readSmallFile(path, limit, options);
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes));
  } catch (cause) {
    throw new CheckpointError(`${path} is not valid JSON: ${(cause as Error).message}`, { cause });
  }
}

/** Whether a JSON value is an object and not an array. */
export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/**
 * Refuses a name from a file unless it is a plain file name. A path could leave the folder or be
 * misread (`../../etc/passwd`, `/dev/zero`, `C:\\x`, a NUL that truncates it).
 */
export function checkPlainFileName(source: string, name: string): void {
  const plain = /^[A-Za-z0-9_+=@-][A-Za-z0-9_.+=@-]{0,200}$/;
  if (!plain.test(name)) {
    throw new CheckpointError(
      `${source}: ${JSON.stringify(name.slice(0, 200))} is not a plain file name ` +
        "(letters, digits and _ . + = @ -, no folder, no leading dot)",
    );
  }
}
