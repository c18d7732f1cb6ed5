import { setImmediate } from "node:timers/promises";
import { createGunzip } from "node:zlib";
import { DataError } from "../../core/errors.js";
import { openRegular } from "../../files/small-file.js";
import type { InputFile } from "./input.js";
import { unzstd } from "./zstd.js";

const chunkBytes = 2 ** 18;

/** Bytes of content after which signals, timers and messages have their turn. */
const turnBytes = 2 ** 22;

/** A part of a file's content, with the number of stored bytes read up to its end. */
export interface Chunk {
  bytes: Buffer;
  consumed: number;
}

/**
 * Reads the content of a file in parts, and decompresses it on the way.
 * @param start byte to start at; only for an uncompressed file
 * @param signal ends the reading, also in the middle of a record
 * @throws DataError naming the file if it cannot be read, is truncated or is damaged
 * @throws the signal's reason
 */
export async function* fileChunks(
  file: InputFile,
  start = 0,
  signal?: AbortSignal,
): AsyncGenerator<Chunk> {
  let consumed = start;
  const handle = await openRegular(file.path).catch((cause: Error) => {
    throw new DataError(`[prepare] cannot read ${file.path}: ${cause.message}`, { cause });
  });
  const stored = handle.createReadStream({ start, highWaterMark: chunkBytes });
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
          ? gunzip(counted())
          : unzstd(counted());
    let sinceTurn = 0;
    for await (const bytes of parts) {
      if (bytes.length > 0) yield { bytes, consumed };
      sinceTurn += bytes.length;
      if (sinceTurn < turnBytes) continue;
      // One read of a compressed file may stand for gigabytes, without a wait in between.
      sinceTurn = 0;
      await setImmediate();
      signal?.throwIfAborted();
    }
  } catch (cause) {
    if (cause instanceof DataError || signal?.aborted) throw cause;
    const problem = (cause as NodeJS.ErrnoException).syscall ? "cannot read" : "cannot decompress";
    throw new DataError(`[prepare] ${problem} ${file.path}: ${(cause as Error).message}`, {
      cause,
    });
  } finally {
    stored.destroy();
  }
}

/**
 * Decompresses a gzip file of any number of members. Zeros after the last member are padding, as
 * gzip defines it. Any other byte there is an error rather than silently ignored.
 */
async function* gunzip(source: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  const transform = createGunzip();
  // After the last member the transform ends, and may never call back for a pending write. The
  // write therefore also waits for the end.
  let over = false;
  let stopped = false;
  let wake = (): void => {};
  for (const event of ["end", "close"]) {
    transform.once(event, () => {
      over = true;
      wake();
    });
  }
  // The consumer of the transform sees its errors. After the end they do not count: Node 20 reports
  // one for a write without an answer.
  transform.on("error", () => {
    stopped ||= !over;
  });
  const write = (chunk: Buffer): Promise<void> =>
    new Promise((resolve) => {
      wake = resolve;
      transform.write(chunk, () => resolve());
    });
  const feed = (async () => {
    let given = 0;
    for await (const chunk of source) {
      if (!over) await write(chunk);
      if (stopped) return;
      // `bytesWritten` covers everything that belongs to a member.
      const rest = chunk.subarray(Math.max(0, transform.bytesWritten - given));
      if (rest.some((byte) => byte !== 0)) throw new Error("data behind its end");
      over ||= rest.length > 0;
      given += chunk.length;
    }
    if (!over) transform.end();
  })();
  feed.catch((error: Error) => transform.destroy(error));
  try {
    for await (const chunk of transform) yield chunk as Buffer;
    await feed;
  } finally {
    stopped = true;
    transform.destroy();
  }
}
