import { mkdir, stat } from "node:fs/promises";
import { dirname, resolve } from "node:path";

/**
 * Makes a folder and those above it that are missing. Node's own `recursive` tries for ever where the system says that a folder
 * is missing and never lets it be made, as below /proc.
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
      // Another process may have made it meanwhile.
      await mkdir(path).catch((again: NodeJS.ErrnoException) => {
        if (again.code !== "EEXIST") throw again;
      });
      return;
    }
    // Some systems say of a folder that is there that it cannot be made: read-only ones, and for the root.
    const there = await stat(path).catch(() => null);
    if (!there?.isDirectory()) throw error;
  }
}
