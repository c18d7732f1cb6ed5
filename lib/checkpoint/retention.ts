/** Which checkpoints stay: the newest few, and every so many steps one for good. */
import { basename } from "node:path";
import { UsageError } from "../errors.js";
import { discard, listCheckpoints } from "./folder.js";
import { verifyCheckpoint } from "./manifest.js";

export interface Retention {
  /** How many of the newest valid checkpoints stay; at least 2, for the newest may turn out damaged. */
  keepLast: number;
  /** Steps divisible by this stay for good; 0 or absent: none. */
  keepEvery?: number;
}

/** @throws UsageError for values that could lose a run */
export function checkRetention({ keepLast, keepEvery = 0 }: Retention): void {
  if (!Number.isSafeInteger(keepLast) || keepLast < 2) {
    throw new UsageError(
      `keepLast must be a whole number of at least 2, got ${keepLast}: ` +
        "with one checkpoint, a damaged file is a lost run",
    );
  }
  if (!Number.isSafeInteger(keepEvery) || keepEvery < 0) {
    throw new UsageError(`keepEvery must be a whole number (0: off), got ${keepEvery}`);
  }
}

/**
 * The steps to delete. Damaged checkpoints do not count as kept ones; those older than the newest valid
 * one go, newer ones stay for whoever wants to know what happened. Without a valid one nothing goes.
 */
export function chooseDeletions(
  checkpoints: readonly { step: number; valid: boolean }[],
  retention: Retention,
): number[] {
  checkRetention(retention);
  const { keepLast, keepEvery = 0 } = retention;
  const valid = checkpoints.filter((c) => c.valid).map((c) => c.step);
  valid.sort((a, b) => b - a);
  const newest = valid[0];
  if (newest === undefined) return [];
  const kept = new Set(valid.slice(0, keepLast));
  if (keepEvery > 0) {
    for (const step of valid) if (step % keepEvery === 0) kept.add(step);
  }
  return checkpoints.map((c) => c.step).filter((step) => step < newest && !kept.has(step));
}

/** Deletes what `chooseDeletions` names, oldest first. Returns the deleted steps. */
export async function applyRetention(folder: string, retention: Retention): Promise<number[]> {
  const places = await listCheckpoints(folder);
  const checkpoints: { step: number; valid: boolean }[] = [];
  for (const { step, path } of places) {
    const valid = await verifyCheckpoint(path, { hashes: false }).then(
      () => true,
      () => false,
    );
    checkpoints.push({ step, valid });
  }
  const deletions = new Set(chooseDeletions(checkpoints, retention));
  for (const { step, path } of places) {
    if (deletions.has(step)) await discard(folder, basename(path));
  }
  return [...deletions];
}
