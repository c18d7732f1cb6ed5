/** Chooses the checkpoints to keep: the newest few, and for good those at every so many steps. */
import { basename } from "node:path";
import { UsageError } from "../core/errors.js";
import type { FolderIdentity } from "../files/folder-identity.js";
import { discard, holdsCheckpoint, listCheckpoints } from "./folder.js";
import { DamagedCheckpointError, verifyCheckpoint } from "./manifest.js";
import { expectUnmoved } from "./moved.js";

export interface Retention {
  /**
   * Number of the newest valid checkpoints to keep; at least 2, because the newest may turn out
   * damaged.
   */
  keepLast: number;
  /** Checkpoints at steps divisible by this are kept for good; 0 or absent: none. */
  keepEvery?: number;
  /** Number of checkpoints with the lowest measured validation loss to keep; 0 or absent: none. */
  keepBest?: number;
}

/** A checkpoint as the retention rules see it. */
export interface Candidate {
  step: number;
  /** Null if validity cannot be judged, for example while the checkpoint is unreadable. */
  valid: boolean | null;
  /** Loss on held-out documents at this step, if it was measured then. */
  validation?: number | null;
}

/** @throws UsageError for values that could lose a run */
export function checkRetention({ keepLast, keepEvery = 0, keepBest = 0 }: Retention): void {
  if (!Number.isSafeInteger(keepLast) || keepLast < 2) {
    throw new UsageError(
      `keepLast must be a whole number of at least 2, got ${keepLast}: ` +
        "with one checkpoint, a damaged file is a lost run",
    );
  }
  if (!Number.isSafeInteger(keepEvery) || keepEvery < 0) {
    throw new UsageError(`keepEvery must be a whole number (0: off), got ${keepEvery}`);
  }
  if (!Number.isSafeInteger(keepBest) || keepBest < 0) {
    throw new UsageError(`keepBest must be a whole number (0: off), got ${keepBest}`);
  }
}

/**
 * Chooses the steps to delete. Damaged checkpoints do not count as kept. Those older than the
 * newest valid one are deleted; newer ones stay, so that the damage can be examined. Without a
 * valid checkpoint nothing is deleted. Checkpoints that `keepEvery` keeps for good stay even if
 * damaged, and so do those that could not be judged.
 */
export function chooseDeletions(checkpoints: readonly Candidate[], retention: Retention): number[] {
  checkRetention(retention);
  const { keepLast, keepEvery = 0, keepBest = 0 } = retention;
  const valid = checkpoints.filter((c) => c.valid).map((c) => c.step);
  valid.sort((a, b) => b - a);
  const newest = valid[0];
  if (newest === undefined) return [];
  const kept = new Set(valid.slice(0, keepLast));
  for (const { step, valid } of checkpoints) {
    if (valid === null || (keepEvery > 0 && step % keepEvery === 0)) kept.add(step);
  }
  const measured = checkpoints.filter(({ valid, validation }) => valid && isNumber(validation));
  // Of equal losses, the later step counts as better.
  measured.sort((a, b) => Number(a.validation) - Number(b.validation) || b.step - a.step);
  for (const { step } of measured.slice(0, keepBest)) kept.add(step);
  return checkpoints.map((c) => c.step).filter((step) => step < newest && !kept.has(step));
}

function isNumber(value: unknown): value is number {
  return typeof value === "number" && Number.isFinite(value);
}

/**
 * Deletes the checkpoints chosen by `chooseDeletions`, oldest first.
 * @param identity identity of the folder: nothing is deleted if another folder has taken its place
 * @returns the deleted steps
 * @throws MovedFolderError if the folder was moved
 */
export async function applyRetention(
  folder: string,
  retention: Retention,
  identity: FolderIdentity | null = null,
): Promise<number[]> {
  const places = await listCheckpoints(folder);
  const checkpoints: Candidate[] = [];
  for (const { step, path } of places) {
    try {
      const { run } = await verifyCheckpoint(path, { hashes: false });
      checkpoints.push({
        step,
        valid: true,
        validation: isNumber(run.validation) ? run.validation : null,
      });
    } catch (error) {
      const damaged = error instanceof DamagedCheckpointError && (await holdsCheckpoint(path));
      checkpoints.push({ step, valid: damaged ? false : null });
    }
  }
  const deletions = new Set(chooseDeletions(checkpoints, retention));
  for (const { step, path } of places) {
    if (!deletions.has(step)) continue;
    await expectUnmoved(identity);
    await discard(folder, basename(path));
  }
  return [...deletions];
}
