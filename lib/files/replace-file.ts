import { randomUUID } from "node:crypto";
import { open, rename, rm } from "node:fs/promises";

/**
 * Gives a file new content: a reader, and a crash, find the old content or the new one. It is
 * written beside the file under a name that nobody else has, so nothing of the user's is
 * overwritten on the way.
 * @param temporary a name to write under instead, in a folder of ours, where a killed call's must
 *   not pile up
 * @throws the system's error; then the file is as it was
 */
export async function replaceFile(
  file: string,
  content: string | Uint8Array,
  temporary?: string,
): Promise<void> {
  const draft = temporary ?? `${file}.llamaforge-${randomUUID()}`;
  const handle = await open(draft, temporary === undefined ? "wx" : "w");
  try {
    try {
      await handle.writeFile(content);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(draft, file);
  } catch (error) {
    await rm(draft, { force: true }).catch(() => {});
    throw error;
  }
}
