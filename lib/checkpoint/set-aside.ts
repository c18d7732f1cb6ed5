import { copyFile, mkdir, readdir } from "node:fs/promises";
import { basename, join } from "node:path";
import type { FolderIdentity } from "../files/folder-identity.js";
import { listCheckpoints } from "./folder.js";
import { expectUnmoved } from "./moved.js";
import { guarded, io, systemCode } from "./native-io.js";

/**
 * Takes the checkpoints after a step out of a run's way, for a run that goes back to that step: otherwise they would be taken
 * for its newest ones, and its own, being older by number, be deleted for them. With them goes a copy of `records`, which the
 * run is about to cut. Nothing is deleted. Only for the holder of the run's lock.
 * @param identity of the folder: nothing is touched in another one that took its place
 * @returns the folder within the run's that they are in now; null if there were none
 */
export async function setAside(
  folder: string,
  step: number,
  records: readonly string[],
  identity: FolderIdentity | null = null,
): Promise<string | null> {
  const newer = (await listCheckpoints(folder)).filter((place) => place.step > step);
  if (newer.length === 0) return null;
  return await guarded(
    `setting aside the checkpoints of ${folder} after step ${step}`,
    async () => {
      const taken = new Set(await readdir(folder));
      let number = 1;
      while (taken.has(`abandoned-${number}`)) number++;
      const target = join(folder, `abandoned-${number}`);
      await expectUnmoved(identity);
      await mkdir(target);
      for (const name of records) {
        await copyFile(join(folder, name), join(target, name)).catch((error: unknown) => {
          if (systemCode(error) !== "ENOENT") throw error;
        });
      }
      await expectUnmoved(identity);
      for (const { path } of newer) await io.renamePath(path, join(target, basename(path)));
      await io.syncDirectory(target);
      await io.syncDirectory(folder);
      return target;
    },
  );
}
