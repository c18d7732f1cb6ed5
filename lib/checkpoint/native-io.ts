/** The addon's file functions (csrc/napi/io_wrap.h), typed, with typed errors. */
import { constants } from "node:os";
import { CheckpointError, UsageError } from "../core/errors.js";
import { addon, type NativeTensor, typedNativeError } from "../core/native.js";

/** One tensor of a safetensors header; `begin` and `end` count from the start of the file's data. */
export interface HeaderEntry {
  name: string;
  dtype: FileDtype;
  shape: number[];
  begin: number;
  end: number;
}

/** A checked safetensors header. `identity` changes when the file is replaced or written to. */
export interface SafetensorsHeader {
  dataOffset: number;
  identity: string;
  entries: HeaderEntry[];
  metadata: [key: string, value: string][];
}

/** Size and SHA-256 of a file. */
export interface Digest {
  bytes: number;
  sha256: string;
}

/** Number formats of safetensors with their bytes per element. */
export const fileDtypeBytes = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U64: 8,
  U32: 4,
  U16: 2,
  U8: 1,
  BOOL: 1,
  C64: 8,
  F8_E4M3: 1,
  F8_E5M2: 1,
  F8_E4M3FNUZ: 1,
  F8_E5M2FNUZ: 1,
} as const;

export type FileDtype = keyof typeof fileDtypeBytes;

/** Values that a tensor being read may have. Any other value is an error that names the element. */
export type TensorValues = "any" | "finite" | "finite, not negative";

/** A new file that is written once and hashed on the way. One call at a time. */
export interface NativeDurableFile {
  open(): Promise<void>;
  write(bytes: Uint8Array): Promise<void>;
  finish(): Promise<Digest>;
  abandon(): Promise<void>;
}

/** A file lock, held from construction to `release()` or the end of the process. */
export interface NativeFileLock {
  write(text: string): void;
  release(): void;
}

interface NativeIo {
  parseSafetensorsHeader(path: string, headerBytesLimit: number): Promise<SafetensorsHeader>;
  formatSafetensorsHeader(
    names: string[],
    dtypes: string[],
    shapes: (readonly number[])[],
    metadata: [string, string][],
  ): ArrayBuffer;
  readTensor(
    path: string,
    identity: string,
    offset: number,
    bytes: number,
    dtype: string,
    tensor: NativeTensor,
    name: string,
    values: TensorValues,
  ): void;
  readBytes(path: string, identity: string, offset: number, bytes: number): Promise<ArrayBuffer>;
  hashFile(path: string): Promise<Digest>;
  syncDirectory(path: string): Promise<void>;
  renamePath(from: string, to: string): Promise<void>;
  exchangePaths(one: string, other: string): Promise<void>;
  DurableFile: new (path: string) => NativeDurableFile;
  FileLock: new (path: string) => NativeFileLock;
}

export const io = addon.io as unknown as NativeIo;

/**
 * Largest number of bytes per call of `readBytes` or `write`: little enough to copy in a
 * millisecond or two.
 */
export const pieceBytes = 4 * 1024 * 1024;

/** The symbol of a system error (`ENOSPC`, ...), or undefined for other errors. */
export function systemCode(error: unknown): string | undefined {
  const { code, errno } = (error ?? {}) as { code?: unknown; errno?: unknown };
  if (typeof code !== "string") return undefined;
  if (/^E[A-Z0-9]+$/.test(code)) return code;
  // libuv has no name for some codes (EDQUOT), and Node then says "Unknown system error -122".
  if (typeof errno !== "number" || !code.startsWith("Unknown system error")) return undefined;
  const names = Object.entries(constants.errno);
  return names.find(([, value]) => value === -errno)?.[0] ?? `E${-errno}`;
}

/** System errors with a remedy worth mentioning. */
const cures: Record<string, string> = {
  ENOSPC: "the disk is full: free space or keep fewer checkpoints",
  EDQUOT: "the disk quota is used up: free space or keep fewer checkpoints",
  EFBIG: "the file is larger than allowed here (ulimit -f, or the file system's limit)",
  EIO: "the disk reports a fault: check it before trusting it again",
  EROFS: "the file system is read-only",
  EACCES: "permission denied",
  ENOENT: "there is no such file or folder",
};

/**
 * Wraps a failure of a file operation as a CheckpointError that names the operation. Errors that
 * already have a class of their own (wrong arguments, CheckpointError) are returned unchanged.
 */
export function checkpointError(doing: string, error: unknown): Error {
  const code = systemCode(error);
  if (code !== undefined) {
    const cure = cures[code] === undefined ? "" : `\n${cures[code]}`;
    const message = (error as Error).message.replace(/^Unknown system error -\d+/, code);
    return new CheckpointError(`${doing}: ${message}${cure}`, { cause: error });
  }
  const typed = typedNativeError(error);
  if (typed instanceof CheckpointError || typed instanceof UsageError) return typed;
  return typed instanceof Error ? typed : new CheckpointError(`${doing}: ${String(typed)}`);
}

/** Runs a file operation and turns its failure into a `checkpointError`. */
export async function guarded<T>(doing: string, run: () => Promise<T>): Promise<T> {
  try {
    return await run();
  } catch (error) {
    throw checkpointError(doing, error);
  }
}
