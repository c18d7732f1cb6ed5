import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { DataError } from "../core/errors.js";
import { HashedFile } from "./hashed-file.js";
import { seenFile } from "./journal.js";
import { SeenHashes } from "./seen-hashes.js";

/**
 * The identifying 12 bytes of a document's 16-byte hash start at this offset. The bytes before it
 * serve only to choose the document's split.
 */
const hashOffset = 4;
const hashBytes = 12;

/**
 * Tells new documents from copies of earlier ones. Hashes are also kept in a file, so that an
 * interrupted preparation can resume.
 */
export class Deduplicator {
  readonly #seen: SeenHashes;
  readonly #file: HashedFile;

  private constructor(seen: SeenHashes, file: HashedFile) {
    this.#seen = seen;
    this.#file = file;
  }

  /** @param known number of hashes in the file to resume from */
  static async open(folder: string, known: number): Promise<Deduplicator> {
    const path = join(folder, seenFile);
    if (known === 0) await writeFile(path, "");
    const seen = new SeenHashes();
    let rest: Buffer = Buffer.alloc(0);
    const file = await HashedFile.resume(path, 1, known * hashBytes, (bytes) => {
      const all = Buffer.concat([rest, bytes]);
      let at = 0;
      for (; at + hashBytes <= all.length; at += hashBytes) seen.add(all, at);
      rest = all.subarray(at);
    });
    if (seen.size === known) return new Deduplicator(seen, file);
    await file.close();
    throw new DataError(`[prepare] ${path} is damaged: remove its folder and begin again`);
  }

  /** Number of different documents so far. */
  get size(): number {
    return this.#seen.size;
  }

  /** Memory used, in bytes. */
  get bytes(): number {
    return this.#seen.bytes;
  }

  /** Whether the document whose hash starts at an offset is new. */
  async isNew(hashes: Uint8Array, offset: number): Promise<boolean> {
    const start = offset + hashOffset;
    if (!this.#seen.add(hashes, start)) return false;
    await this.#file.write(hashes.subarray(start, start + hashBytes));
    return true;
  }

  async sync(): Promise<void> {
    await this.#file.sync();
  }

  async close(): Promise<void> {
    await this.#file.close();
  }
}
