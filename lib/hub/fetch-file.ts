import { createHash, type Hash } from "node:crypto";
import { createReadStream } from "node:fs";
import { open, rename, rm, stat } from "node:fs/promises";
import { setTimeout as wait } from "node:timers/promises";
import { CheckpointError } from "../core/errors.js";
import type { HubFile } from "./package.js";

/** Interruptions without a new byte after which a file is given up. */
const mostFailures = 5;
const firstWaitMs = 500;

/** The name of a file's bytes: the SHA-256 of a large file, else Git's hash. */
export function hashOf({ oid, lfs }: HubFile): string {
  return lfs?.oid ?? oid ?? "";
}

/**
 * Fetches the bytes of a file to `target`. What an interrupted call has fetched lies in
 * `target.incomplete`, and the next one goes on there. The hash is checked before the file gets its
 * name; damaged bytes are fetched once more.
 * @param read yields the bytes from an offset on
 * @param onBytes called with the number of new bytes
 * @throws CheckpointError for bytes that are damaged again; the error of `read` if it keeps failing
 */
export async function fetchFile(
  file: HubFile,
  target: string,
  read: (offset: number) => AsyncIterable<Uint8Array>,
  onBytes: (bytes: number) => void,
  signal?: AbortSignal,
): Promise<void> {
  const size = file.lfs?.size ?? file.size;
  const partial = `${target}.incomplete`;
  for (let attempt = 1; ; attempt++) {
    const hash = await fetchAll(size, partial, hasherOf(file, size), { read, onBytes, signal });
    if (hash === hashOf(file)) break;
    await rm(partial, { force: true });
    if (attempt === 2) {
      throw new CheckpointError(
        `${file.path}: its ${file.lfs ? "SHA-256" : "hash"} is ${hash}, expected ${hashOf(file)}: the bytes ` +
          "were damaged on their way, twice",
      );
    }
  }
  await rename(partial, target);
}

/** Git hashes a length in front of the bytes. */
function hasherOf({ lfs }: HubFile, size: number): Hash {
  return lfs ? createHash("sha256") : createHash("sha1").update(`blob ${size}\0`);
}

/** Fetches the missing bytes. @returns the hash of all bytes */
async function fetchAll(
  size: number,
  partial: string,
  hash: Hash,
  {
    read,
    onBytes,
    signal,
  }: {
    read: (offset: number) => AsyncIterable<Uint8Array>;
    onBytes: (bytes: number) => void;
    signal: AbortSignal | undefined;
  },
): Promise<string> {
  let done = await sizeOf(partial);
  if (done > size) {
    await rm(partial);
    done = 0;
  }
  if (done > 0) {
    for await (const chunk of createReadStream(partial)) hash.update(chunk as Uint8Array);
  }
  onBytes(done);
  const handle = await open(partial, "a");
  try {
    for (let failures = 0; done < size; ) {
      const before = done;
      try {
        for await (const chunk of read(done)) {
          signal?.throwIfAborted();
          // A server that sends too much has sent the wrong bytes; their hash will tell.
          const bytes = chunk.subarray(0, size - done);
          await handle.appendFile(bytes);
          hash.update(bytes);
          done += bytes.length;
          onBytes(bytes.length);
          if (chunk.length > bytes.length) break;
        }
        if (done < size) throw new Error(`the connection ended after ${done} of ${size} bytes`);
      } catch (error) {
        signal?.throwIfAborted();
        failures = done > before ? 1 : failures + 1;
        if (isFinal(error) || failures >= mostFailures) throw error;
        await wait(firstWaitMs * 2 ** (failures - 1), undefined, signal && { signal });
      }
    }
    await handle.sync();
  } finally {
    await handle.close();
  }
  return hash.digest("hex");
}

/** Whether another attempt would end alike: the server refuses, or the disk is full. */
function isFinal(error: unknown): boolean {
  const { statusCode, syscall } = error as { statusCode?: number; syscall?: string };
  if (syscall === "write" || syscall === "open") return true;
  return statusCode !== undefined && statusCode < 500 && statusCode !== 408 && statusCode !== 429;
}

async function sizeOf(path: string): Promise<number> {
  return await stat(path).then(
    ({ size }) => size,
    () => 0,
  );
}
