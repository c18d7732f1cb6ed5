/** Safetensors files: lazily read tensors, and durable writing. The header is parsed in C++. */

import { realpath } from "node:fs/promises";
import {
  checkArray,
  checkBoolean,
  checkChoice,
  checkFunction,
  checkInteger,
  checkObject,
  checkOptions,
  checkPath,
  checkString,
} from "../core/check-values.js";
import { ArgumentError, CheckpointError } from "../core/errors.js";
import { hostArray } from "../core/host-array.js";
import { type NativeTensor, typedNativeError } from "../core/native.js";
import { writeDurably } from "./durable.js";
import {
  type Digest,
  type FileDtype,
  fileDtypeBytes,
  guarded,
  io,
  pieceBytes,
  type SafetensorsHeader,
  type TensorValues,
} from "./native-io.js";

/**
 * A tensor to be written. `bytes` is called at the tensor's turn, so that only one tensor is in
 * memory at a time.
 */
export interface TensorSource {
  name: string;
  dtype: FileDtype;
  shape: readonly number[];
  /**
   * Little-endian and row-major, with exactly the size given by shape and dtype. Must not change
   * until the save is done.
   */
  bytes: () => Uint8Array | Promise<Uint8Array>;
}

/** A tensor in a file, not read yet. */
export interface StoredTensor {
  readonly name: string;
  readonly dtype: FileDtype;
  readonly shape: readonly number[];
  readonly byteLength: number;
  /** Path of its file. */
  readonly path: string;
  /**
   * Reads all its bytes. @throws CheckpointError if the file was truncated or replaced since it was
   * opened
   */
  readBytes(): Promise<Uint8Array>;
  /**
   * Reads and converts into a tensor with as many elements, in the order of its device's stream: a
   * failure surfaces at the next wait. F64, F32, F16 and BF16 are read into f32 or bf16; I64 and
   * I32 into i32.
   * @param values values that the tensor may have ("any"); the failure names file, tensor and
   *   element
   */
  readInto(tensor: NativeTensor, values?: TensorValues): void;
}

/** The tensors of one or more files by name, in file order, with the metadata of the first file. */
export interface StoredTensors {
  tensors: Map<string, StoredTensor>;
  metadata: Map<string, string>;
}

/** How a safetensors file is read. */
export interface ReadOptions {
  /**
   * Follow a symbolic link in the last part of the path, because hub caches consist of them.
   * Default: false.
   */
  followLinks?: boolean;
  /** Largest accepted header in bytes. Default: 100 MB. */
  headerBytesLimit?: number;
}

/** Opens a safetensors file. The whole header is checked, but no tensor is read. */
export async function readSafetensors(
  path: string,
  options: ReadOptions = {},
): Promise<StoredTensors> {
  const op = "readSafetensors";
  checkPath(op, "path", path);
  checkOptions(op, options, ["followLinks", "headerBytesLimit"]);
  const { followLinks = false, headerBytesLimit = 100_000_000 } = options;
  checkBoolean(op, "followLinks", followLinks);
  checkInteger(op, "headerBytesLimit", headerBytesLimit, { min: 1 });
  return await guarded(`reading ${path}`, async () => {
    const file = followLinks ? await realpath(path) : path;
    const header = await io.parseSafetensorsHeader(file, headerBytesLimit);
    const tensors = new Map<string, StoredTensor>();
    for (const entry of header.entries) {
      tensors.set(entry.name, storedTensor(file, header, entry));
    }
    return { tensors, metadata: new Map(header.metadata) };
  });
}

function storedTensor(
  path: string,
  { identity, dataOffset }: SafetensorsHeader,
  { name, dtype, shape, begin, end }: SafetensorsHeader["entries"][number],
): StoredTensor {
  const byteLength = end - begin;
  return {
    name,
    dtype,
    shape,
    byteLength,
    path,
    readBytes: () =>
      guarded(`reading tensor ${name}`, async () => {
        const all = hostArray("readBytes", Uint8Array, byteLength);
        for (let start = 0; start < byteLength; start += pieceBytes) {
          const bytes = Math.min(pieceBytes, byteLength - start);
          const piece = await io.readBytes(path, identity, dataOffset + begin + start, bytes);
          all.set(new Uint8Array(piece), start);
        }
        return all;
      }),
    readInto: (tensor, values = "any") => {
      try {
        io.readTensor(path, identity, dataOffset + begin, byteLength, dtype, tensor, name, values);
      } catch (error) {
        throw typedNativeError(error);
      }
    },
  };
}

/** Size of a tensor in bytes. @throws ArgumentError for an impossible shape or an unknown dtype */
export function tensorBytes({ name, dtype, shape }: Omit<TensorSource, "bytes">): number {
  if (!Object.hasOwn(fileDtypeBytes, dtype)) {
    throw new ArgumentError(
      `[writeSafetensors] tensor ${name}: unknown dtype ${JSON.stringify(dtype)} ` +
        `(known: ${Object.keys(fileDtypeBytes).join(", ")})`,
    );
  }
  let bytes: number = fileDtypeBytes[dtype];
  for (const size of shape) {
    if (!Number.isSafeInteger(size) || size < 0) {
      throw new ArgumentError(`[writeSafetensors] tensor ${name}: bad shape [${shape.join(",")}]`);
    }
    bytes *= size;
  }
  if (!Number.isSafeInteger(bytes)) {
    throw new ArgumentError(
      `[writeSafetensors] tensor ${name}: shape [${shape.join(",")}] is too large`,
    );
  }
  return bytes;
}

/** Checks a tensor to write. Its dtype must be one that this library can name. */
function checkSource(op: string, name: string, value: unknown): asserts value is TensorSource {
  checkObject(op, name, value, "a tensor to write: { name, dtype, shape, bytes }");
  const source = value as Partial<TensorSource>;
  checkString(op, `${name}.name`, source.name);
  checkChoice(op, `${name}.dtype`, source.dtype, Object.keys(fileDtypeBytes));
  checkArray(op, `${name}.shape`, source.shape, "an array of whole numbers");
  for (const size of source.shape) checkInteger(op, `${name}.shape`, size, { min: 0 });
  checkFunction(op, `${name}.bytes`, source.bytes);
}

/**
 * Writes a new safetensors file and fsyncs it. Tensors are laid out in the given order, wider
 * dtypes first, so that each is aligned. Equal input gives equal bytes.
 * @returns size and SHA-256 of the file
 * @throws CheckpointError if the disk refuses or a source yields a wrong number of bytes
 */
export async function writeSafetensors(
  path: string,
  tensors: readonly TensorSource[],
  metadata: Readonly<Record<string, string>> = {},
): Promise<Digest> {
  const op = "writeSafetensors";
  checkPath(op, "path", path);
  checkArray(op, "tensors", tensors, "an array of tensors");
  for (const [index, tensor] of tensors.entries()) checkSource(op, `tensors[${index}]`, tensor);
  checkObject(op, "metadata", metadata);
  for (const [key, value] of Object.entries(metadata)) checkString(op, `metadata.${key}`, value);
  for (const tensor of tensors) tensorBytes(tensor);
  const ordered = [...tensors].sort((a, b) => fileDtypeBytes[b.dtype] - fileDtypeBytes[a.dtype]);
  const header = formatHeader(path, ordered, Object.entries(metadata));
  return await writeDurably(path, async (write) => {
    await write(header);
    for (const tensor of ordered) {
      const bytes = await tensor.bytes();
      if (!(bytes instanceof Uint8Array) || bytes.length !== tensorBytes(tensor)) {
        const got = bytes instanceof Uint8Array ? `${bytes.length}` : `a ${typeof bytes}`;
        throw new CheckpointError(
          `tensor ${tensor.name}: expected ${tensorBytes(tensor)} bytes ` +
            `(${tensor.dtype} [${tensor.shape.join(",")}]), got ${got}`,
        );
      }
      await write(bytes);
    }
  });
}

function formatHeader(
  path: string,
  tensors: readonly TensorSource[],
  metadata: [string, string][],
): Uint8Array {
  // A lone surrogate has no UTF-8 form and would silently become another character.
  for (const text of [...tensors.map(({ name }) => name), ...metadata.flat()]) {
    if (/\p{Surrogate}/u.test(text)) {
      throw new CheckpointError(`${path}: ${JSON.stringify(text)} is not well-formed Unicode`);
    }
  }
  try {
    const names = tensors.map(({ name }) => name);
    const dtypes = tensors.map(({ dtype }) => dtype);
    const shapes = tensors.map(({ shape }) => shape);
    return new Uint8Array(io.formatSafetensorsHeader(names, dtypes, shapes, metadata));
  } catch (error) {
    throw typedNativeError(error);
  }
}
