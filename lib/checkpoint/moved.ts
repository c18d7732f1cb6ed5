/** A run's folder that is no longer behind its path: the run ends, and what is there now is left alone. */
import { CheckpointError } from "../core/errors.js";
import type { FolderIdentity } from "../files/folder-identity.js";

/** The folder that a run writes into was moved or removed. Unlike a full disk this does not pass by itself. */
export class MovedFolderError extends CheckpointError {}

/**
 * Asked before each write into a run's folder and each deletion there.
 * @param folder null where nobody else can be at the folder, so that nothing is asked
 * @throws MovedFolderError if another folder, or none, is behind the path now
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
