/** Names and places of checkpoints in a run's folder: `step-0000001000/`, `.tmp` while written, `.trash/`. */
import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { ArgumentError } from "../errors.js";
import { makeFolder } from "../make-folder.js";
import { guarded, io, systemCode } from "./native-io.js";

export interface CheckpointPlace {
  step: number;
  path: string;
}

/** `step-0000001000`. More digits where the number needs them; order is by number, never by name. */
export function checkpointName(step: number): string {
  if (!Number.isSafeInteger(step) || step < 0 || step >= 1e15) {
    throw new ArgumentError(
      `[checkpoint] step must be a whole number from 0 to 10^15, got ${step}`,
    );
  }
  return `step-${`${step}`.padStart(10, "0")}`;
}

/** The checkpoints of a folder by number, oldest first, valid or not. None if the folder is not there. */
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
    // Only the name that we would give: step-7 beside step-0000000007 would be one step twice.
    if (!match || !entry.isDirectory() || entry.name !== checkpointName(Number(match[1]))) continue;
    places.push({ step: Number(match[1]), path: join(folder, entry.name) });
  }
  return places.sort((a, b) => a.step - b.step);
}

let discarded = 0;

/**
 * Deletes a checkpoint or a half-written one. It is renamed first: a crash in the middle of removing
 * its files must not leave a folder that looks like a checkpoint.
 */
export async function discard(folder: string, name: string): Promise<void> {
  await guarded(`deleting ${join(folder, name)}`, async () => {
    const trash = join(folder, ".trash");
    await makeFolder(trash);
    discarded += 1;
    const target = join(trash, `${name}-${process.pid}-${Date.now()}-${discarded}`);
    await io.renamePath(join(folder, name), target);
    await io.syncDirectory(folder);
    await rm(target, { recursive: true, force: true });
  });
}

/** Removes what a killed run left behind. Only for the holder of the run's lock. */
export async function cleanUp(folder: string): Promise<void> {
  await guarded(`cleaning ${folder}`, async () => {
    await rm(join(folder, ".trash"), { recursive: true, force: true });
    for (const entry of await readdir(folder, { withFileTypes: true })) {
      if (/^step-\d{1,15}\.tmp$/.test(entry.name) && entry.isDirectory()) {
        await rm(join(folder, entry.name), { recursive: true, force: true });
      }
    }
  });
}
