import { DataError } from "../core/errors.js";
import type { FolderIdentity } from "../files/folder-identity.js";

/** The folder that a data set was made in was moved or removed: nothing is written or deleted there any more. */
export class MovedDataError extends DataError {}

/**
 * Asked before each file that a preparation makes, replaces or deletes.
 * @throws MovedDataError if another folder, or none, is behind the path now
 */
export async function expectUnmoved(folder: FolderIdentity): Promise<void> {
  const why = await folder.moved();
  if (why === null) return;
  throw new MovedDataError(
    `[prepare] ${why}: the work ends here. What is done so far is in the folder that was moved: ` +
      "move it back, and the same call goes on with it",
  );
}
