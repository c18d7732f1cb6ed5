import type { Dirent } from "node:fs";
import { readdir, stat } from "node:fs/promises";
import { extname, join } from "node:path";
import { DataError } from "../../errors.js";

/** A file found, with its size. */
export interface FoundFile {
  path: string;
  bytes: number;
}

export interface FolderFilter {
  /** Lower-case extensions with their dot. */
  extensions: ReadonlySet<string>;
  /** Names of folders that are not entered. */
  exclude: ReadonlySet<string>;
}

/**
 * The files of a folder and its subfolders, ordered by path in UTF-16 units, so that every file system gives the same
 * order. Symbolic links inside the folder are not followed: they could lead out of it, or round in a circle.
 */
export async function listFiles(folder: string, filter: FolderFilter): Promise<FoundFile[]> {
  const found: FoundFile[] = [];
  const pending = [folder];
  for (let current = pending.pop(); current !== undefined; current = pending.pop()) {
    for (const entry of await entriesOf(current)) {
      const path = join(current, entry.name);
      if (entry.isDirectory() && !filter.exclude.has(entry.name)) pending.push(path);
      if (entry.isFile() && filter.extensions.has(extname(entry.name).toLowerCase())) {
        found.push({ path, bytes: (await stat(path)).size });
      }
    }
  }
  return found.sort((a, b) => (a.path < b.path ? -1 : 1));
}

async function entriesOf(folder: string): Promise<Dirent[]> {
  try {
    return await readdir(folder, { withFileTypes: true });
  } catch (cause) {
    throw new DataError(`[prepare] cannot read ${folder}: ${(cause as Error).message}`, { cause });
  }
}
