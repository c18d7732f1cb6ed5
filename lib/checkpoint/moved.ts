/**
 * Handles a run's folder that is no longer at its path: the run ends, and the path is left alone.
 */
import { CheckpointError } from "../core/errors.js";
import type { FolderIdentity } from "../files/folder-identity.js";

/**
 * The folder that a run writes into was moved or removed. Unlike a full disk, this does not pass by
 * itself.
 */
export class MovedFolderError extends CheckpointError {}

/**
 * Checks a run's folder before each write and each deletion in it.
 * @param folder null if nobody else can access the folder, which skips the check
 * @throws MovedFolderError if the path now leads to another folder, or to none
 */
export async function expectUnmoved(folder: FolderIdentity | null | undefined): Promise<void> {
  const why = (await folder?.moved()) ?? null;
  if (why === null) return;
  throw new MovedFolderError(
    `${why}: the run ends here, and nothing is written to ${folder?.path} any more\n` +
      "what it has saved is in the folder that was moved: move it back, or name its new place " +
      "as `out`, and start the run again",
  );
}
