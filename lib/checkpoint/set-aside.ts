import { copyFile, mkdir, readdir } from "node:fs/promises";
import { basename, join } from "node:path";
import type { FolderIdentity } from "../files/folder-identity.js";
import { listCheckpoints } from "./folder.js";
import { expectUnmoved } from "./moved.js";
import { guarded, io, systemCode } from "./native-io.js";

/**
 * Sets aside the checkpoints after a step, for a run that goes back to that step. They would
 * otherwise be taken for the run's newest, and the run's own, older by number, would be deleted in
 * their favour. A copy of `records`, which the run is about to truncate, goes with them. Nothing is
 * deleted. Only the holder of the run's lock may call it.
 * @param identity identity of the folder: nothing is touched if another folder has taken its place
 * @returns the subfolder that now holds the checkpoints; null if there were none
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
