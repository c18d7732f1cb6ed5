import { mkdir, stat } from "node:fs/promises";
import { dirname, resolve } from "node:path";

/**
 * Makes a folder and its missing parents. Node's own `recursive` loops forever where the system
 * reports a missing folder but never lets it be made, as below /proc.
 * @throws the system's error
 */
export async function makeFolder(folder: string): Promise<void> {
  const path = resolve(folder);
  try {
    await mkdir(path);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" && dirname(path) !== path) {
      await makeFolder(dirname(path));
      // Another process may have made the folder meanwhile.
      await mkdir(path).catch((again: NodeJS.ErrnoException) => {
        if (again.code !== "EEXIST") throw again;
      });
      return;
    }
    // Some systems report that an existing folder cannot be made: read-only ones, and all for the
    // root.
    const there = await stat(path).catch(() => null);
    if (!there?.isDirectory()) throw error;
  }
}
