import { createReadStream } from "node:fs";
import * as zlib from "node:zlib";
import { Decompress } from "fzstd";
import { DataError } from "../../errors.js";
import type { InputFile } from "./input.js";

const chunkBytes = 2 ** 18;

/** A part of a file's content, and how many of its stored bytes have been read by then. */
export interface Chunk {
  bytes: Buffer;
  consumed: number;
}

/**
 * The content of a file in parts, decompressed as it is read.
 * @param start byte to start at; only for a file that is stored as it is
 * @throws DataError naming the file if it cannot be read, is cut short or is damaged
 */
export async function* fileChunks(file: InputFile, start = 0): AsyncGenerator<Chunk> {
  let consumed = start;
  const stored = createReadStream(file.path, { start, highWaterMark: chunkBytes });
  async function* counted(): AsyncGenerator<Buffer> {
    for await (const chunk of stored) {
      consumed += (chunk as Buffer).length;
      yield chunk as Buffer;
    }
  }
  try {
    const parts =
      file.compression === "none"
        ? counted()
        : file.compression === "gzip"
          ? through(counted(), zlib.createGunzip())
          : unzstd(counted());
    for await (const bytes of parts) if (bytes.length > 0) yield { bytes, consumed };
  } catch (cause) {
    if (cause instanceof DataError) throw cause;
    const problem = (cause as NodeJS.ErrnoException).syscall ? "cannot read" : "cannot decompress";
    throw new DataError(`[prepare] ${problem} ${file.path}: ${(cause as Error).message}`, {
      cause,
    });
  } finally {
    stored.destroy();
  }
}

async function* through(
  source: AsyncIterable<Buffer>,
  transform: zlib.Gunzip,
): AsyncGenerator<Buffer> {
  const feed = (async () => {
    for await (const chunk of source) {
      if (!transform.write(chunk)) await new Promise((resolve) => transform.once("drain", resolve));
    }
    transform.end();
  })();
  feed.catch((error: Error) => transform.destroy(error));
  try {
    for await (const chunk of transform) yield chunk as Buffer;
    await feed;
  } finally {
    transform.destroy();
  }
}

/** Node's own zstd where it has one (22.15, 23.8 and later), else one in JavaScript. */
function unzstd(source: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  const { createZstdDecompress } = zlib as { createZstdDecompress?: () => zlib.Gunzip };
  return createZstdDecompress ? through(source, createZstdDecompress()) : unzstdInScript(source);
}

async function* unzstdInScript(source: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  let parts: Buffer[] = [];
  const stream = new Decompress((data) => {
    parts.push(Buffer.from(data.buffer, data.byteOffset, data.byteLength));
  });
  for await (const chunk of source) {
    // Small steps: one push may yield many times its size.
    for (let at = 0; at < chunk.length; at += 2 ** 15) {
      stream.push(chunk.subarray(at, at + 2 ** 15));
      const ready = parts;
      parts = [];
      yield* ready;
    }
  }
  stream.push(new Uint8Array(0), true);
  yield* parts;
}
