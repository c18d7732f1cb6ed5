import { UsageError } from "../../core/errors.js";
import { optionName } from "../../core/option-names.js";
import { type ShardEntry, type Split, splitNames } from "../../data/dataset-file.js";
import {
  checkpointFor,
  type Journal,
  type PassCheckpoint,
  readJournal,
  type WorkFacts,
  writeJournal,
} from "../journal.js";
import type { FoundInput } from "../readers/find.js";
import { readShardLog } from "../shard-log.js";
import { FileNames } from "./identity.js";

/** The state of an unfinished preparation, to resume from. */
export interface Beginning {
  checkpoint: PassCheckpoint;
  /** The latest checkpoint between two files. */
  between: PassCheckpoint | null;
  shards: Record<Split, ShardEntry[]>;
}

/**
 * Finds resumable work in a folder.
 * @param startOver discard unfinished work that does not match, although it may have taken days
 * @returns null if there is nothing to resume from
 * @throws UsageError if the folder holds work that does not match; it names the differences
 */
export async function findBeginning(
  folder: string,
  work: WorkFacts,
  fraction: number,
  found: readonly FoundInput[],
  startOver: boolean,
): Promise<Beginning | null> {
  const journal = await readJournal(folder);
  if (journal === null) return null;
  const readUpTo = (position: PassCheckpoint["position"]) => new FileNames(found).upTo(position);
  const checkpoint = checkpointFor(journal, work, fraction, readUpTo);
  if (typeof checkpoint === "string") {
    const documents = documentsOf(journal);
    if (documents === 0 || startOver) return null;
    throw new UsageError(
      `[prepare] ${folder} holds ${documents.toLocaleString("en-US")} documents of unfinished work that this call cannot go on ` +
        `with: ${checkpoint}. Give what it was begun with, or discard it: ${optionName("startOver")}`,
    );
  }
  const shards = await readShardLog(folder);
  for (const split of splitNames) {
    const { finished } = checkpoint.writers[split];
    for (let at = 0; at < finished; at++) if (shards[split][at] === undefined) return null;
  }
  // Shards after an earlier checkpoint are made again, so nothing may resume from the later one.
  if (checkpoint !== journal.checkpoints[0]) {
    await writeJournal(folder, { ...work, checkpoints: [checkpoint] });
  }
  const between = journal.checkpoints.find(({ position }) => position.record === 0) ?? null;
  return { checkpoint, between, shards };
}

function documentsOf({ checkpoints }: Journal): number {
  const sources = checkpoints[0]?.sources ?? [];
  return sources.reduce((sum, { documents }) => sum + documents, 0);
}
