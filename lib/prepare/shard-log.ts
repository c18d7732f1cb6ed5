import { constants } from "node:fs";
import type { FileHandle } from "node:fs/promises";
import { join } from "node:path";
import { parseShardFile, type ShardEntry, type Split } from "../data/dataset-file.js";
import { openRegular } from "../files/small-file.js";

export const shardLogFile = "prepare-shards.jsonl";

/**
 * Log of a preparation's finished shards, one a line, so that adding a shard costs the same however
 * many there are. Lines are never removed. If a shard was made again, the last of its lines counts.
 */
export class ShardLog {
  readonly #handle: FileHandle;

  private constructor(handle: FileHandle) {
    this.#handle = handle;
  }

  static async open(folder: string): Promise<ShardLog> {
    return new ShardLog(await openLog(folder));
  }

  /** Adds shards durably. */
  async add(shards: readonly ShardEntry[]): Promise<void> {
    if (shards.length === 0) return;
    // The leading line break ends a line that a crash left unfinished.
    const text = shards.map((shard) => `\n${JSON.stringify(shard)}`).join("");
    await this.#handle.appendFile(text);
    await this.#handle.sync();
  }

  async close(): Promise<void> {
    await this.#handle.close();
  }
}

async function openLog(folder: string): Promise<FileHandle> {
  const { O_RDWR, O_CREAT, O_APPEND } = constants;
  return await openRegular(join(folder, shardLogFile), { flags: O_RDWR | O_CREAT | O_APPEND });
}

/** Reads the shards in a folder's log, by their numbers. Incomplete lines are skipped. */
export async function readShardLog(folder: string): Promise<Record<Split, ShardEntry[]>> {
  const shards: Record<Split, ShardEntry[]> = { train: [], validation: [] };
  const handle = await openLog(folder);
  for await (const line of handle.readLines({ start: 0 })) {
    const shard = parseLine(line);
    const place = shard && parseShardFile(shard.file);
    if (place) shards[place.split][place.number] = shard;
  }
  return shards;
}

function parseLine(line: string): ShardEntry | null {
  try {
    return JSON.parse(line) as ShardEntry;
  } catch {
    return null;
  }
}
