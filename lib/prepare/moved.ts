import { DataError } from "../core/errors.js";
import type { FolderIdentity } from "../files/folder-identity.js";

/**
 * Thrown after the working folder was moved or removed. Nothing more is written or deleted at its
 * path.
 */
export class MovedDataError extends DataError {}

/**
 * Checks the working folder before each file that a preparation makes, replaces or deletes.
 * @throws MovedDataError if the path now leads to another folder, or to none
 */
export async function expectUnmoved(folder: FolderIdentity): Promise<void> {
  const why = await folder.moved();
  if (why === null) return;
  throw new MovedDataError(
    `[prepare] ${why}: the work ends here. What is done so far is in the folder that was moved: ` +
      "move it back, and the same call goes on with it",
  );
}
