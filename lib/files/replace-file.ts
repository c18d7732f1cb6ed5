import { randomUUID } from "node:crypto";
import { open, rename, rm } from "node:fs/promises";

/**
 * Replaces the content of a file atomically: a reader, or a crash, finds the old content or the
 * new. The new content is first written under a unique name next to the file, so no file of the
 * user's is overwritten.
 * @param temporary name to write under instead, in a folder of this library, where files of killed
 *   calls must not pile up
 * @throws the system's error; the file is then unchanged
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
