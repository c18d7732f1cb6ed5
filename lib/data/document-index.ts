import type { FileHandle } from "node:fs/promises";
import { DataError } from "../core/errors.js";
import { openRegular } from "../files/small-file.js";
import { indexEntryBytes } from "./dataset-file.js";

/**
 * Checks a shard's document index: its size, the 0 at the start, and the shard's token count at the
 * end.
 * @param every also check that all starts rise, which reads the whole file
 * @throws DataError naming the file
 */
export async function checkIndex(
  path: string,
  { documents, tokens }: { documents: number; tokens: number },
  every: boolean,
): Promise<void> {
  let handle: FileHandle;
  try {
    handle = await openRegular(path);
  } catch (cause) {
    throw new DataError(`[data] cannot read ${path}: ${(cause as Error).message}`, { cause });
  }
  try {
    const expected = (documents + 1) * indexEntryBytes;
    const { size } = await handle.stat();
    if (size !== expected) {
      throw new DataError(
        `[data] ${path} has ${size} bytes, but ${documents} documents need ${expected}`,
      );
    }
    const starts = every
      ? entries(await handle.readFile())
      : [await entryAt(handle, 0), await entryAt(handle, documents)];
    if (starts[0] !== 0n) throw new DataError(`[data] ${path} starts at token ${starts[0]}, not 0`);
    for (let place = 1; place < starts.length; place++) {
      if ((starts[place] as bigint) <= (starts[place - 1] as bigint)) {
        throw new DataError(
          `[data] ${path}: entry ${place} is token ${starts[place]}, not behind the one before`,
        );
      }
    }
    if (starts.at(-1) !== BigInt(tokens)) {
      throw new DataError(`[data] ${path} ends at token ${starts.at(-1)}, the shard at ${tokens}`);
    }
  } finally {
    await handle.close();
  }
}

function entries(bytes: Buffer): bigint[] {
  return Array.from({ length: bytes.length / indexEntryBytes }, (_, place) =>
    bytes.readBigUInt64LE(place * indexEntryBytes),
  );
}

async function entryAt(handle: FileHandle, place: number): Promise<bigint> {
  const bytes = Buffer.alloc(indexEntryBytes);
  await handle.read(bytes, 0, bytes.length, place * indexEntryBytes);
  return bytes.readBigUInt64LE();
}
