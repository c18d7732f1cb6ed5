/**
 * Names and places of checkpoints in a run's folder: `step-0000001000/`, `.tmp` during the save,
 * `.trash/`.
 */
import { lstat, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { ArgumentError } from "../core/errors.js";
import { makeOwnFolder, refuseForeign, removeOwnFolder } from "../files/own-folder.js";
import { guarded, io, systemCode } from "./native-io.js";

/** A checkpoint's folder and step. */
export interface CheckpointPlace {
  step: number;
  path: string;
}

/**
 * Name of a checkpoint, such as `step-0000001000`. Large steps have more digits, so order is by
 * number and never by name.
 */
export function checkpointName(step: number): string {
  if (!Number.isSafeInteger(step) || step < 0 || step >= 1e15) {
    throw new ArgumentError(
      `[checkpoint] step must be a whole number from 0 to 10^15, got ${step}`,
    );
  }
  return `step-${`${step}`.padStart(10, "0")}`;
}

/**
 * Lists the checkpoints of a folder by number, oldest first, valid or not. A missing folder has
 * none.
 */
export async function listCheckpoints(folder: string): Promise<CheckpointPlace[]> {
  const entries = await guarded(`listing ${folder}`, () =>
    readdir(folder, { withFileTypes: true }).catch((error: unknown) => {
      if (systemCode(error) === "ENOENT") return [];
      throw error;
    }),
  );
  const places: CheckpointPlace[] = [];
  for (const entry of entries) {
    const match = /^step-(\d{1,15})$/.exec(entry.name);
    // Only names that this library gives: step-7 next to step-0000000007 would be the same step
    // twice.
    if (!match || !entry.isDirectory() || entry.name !== checkpointName(Number(match[1]))) continue;
    places.push({ step: Number(match[1]), path: join(folder, entry.name) });
  }
  return places.sort((a, b) => a.step - b.step);
}

/**
 * Whether a folder with a checkpoint's name holds one, whole or damaged, which shows by a manifest
 * or a trainer's state. Any other folder of that name is the user's own, and must not be replaced
 * or deleted.
 */
export async function holdsCheckpoint(path: string): Promise<boolean> {
  for (const name of ["manifest.json", "trainer.json"]) {
    const status = await lstat(join(path, name)).catch(() => null);
    if (status?.isFile()) return true;
  }
  return false;
}

let discarded = 0;

/**
 * Deletes a checkpoint. The folder is renamed first: a crash while its files are removed must not
 * leave a folder that looks like a checkpoint.
 */
export async function discard(folder: string, name: string): Promise<void> {
  await guarded(`deleting ${join(folder, name)}`, async () => {
    const trash = join(folder, ".trash");
    await makeOwnFolder(trash, "[checkpoint]");
    discarded += 1;
    const target = join(trash, `${name}-${process.pid}-${Date.now()}-${discarded}`);
    await io.renamePath(join(folder, name), target);
    await io.syncDirectory(folder);
    await rm(target, { recursive: true, force: true });
  });
}

/**
 * Removes the remains of a killed run. Only the holder of the run's lock may call it.
 * @throws UsageError if something has a name that saves need but was not left by a run; nothing is
 *   removed then
 */
export async function cleanUp(folder: string): Promise<void> {
  await guarded(`cleaning ${folder}`, async () => {
    const names = (await readdir(folder)).filter((name) => /^step-\d{1,15}\.tmp$/.test(name));
    const left = [".trash", ...names].map((name) => join(folder, name));
    for (const path of left) await refuseForeign(path, "[checkpoint]");
    for (const path of left) await removeOwnFolder(path, "[checkpoint]");
  });
}
