import { type Dirent, type Stats, statSync } from "node:fs";
import { readdir, realpath } from "node:fs/promises";
import { join } from "node:path";
import { DataError } from "../../errors.js";

/** A file found, with its size and when it was changed. */
export interface FoundFile {
  path: string;
  bytes: number;
  mtimeMs: number;
}

/**
 * The files of a folder and its subfolders, ordered by path in UTF-16 units, so that every file system gives the same
 * order. Symbolic links to folders are not followed: they could lead out, or round in a circle. Links to files are, as
 * the Hugging Face cache consists of them.
 * @param exclude names of folders that are not entered
 * @param own     paths, without links, of files and folders that are passed over
 */
export async function listFiles(
  folder: string,
  exclude: ReadonlySet<string>,
  own: ReadonlySet<string> = new Set(),
): Promise<FoundFile[]> {
  const found: FoundFile[] = [];
  const pending = [folder];
  for (let current = pending.pop(); current !== undefined; current = pending.pop()) {
    const entries = await entriesOf(current);
    const place = own.size === 0 ? current : await realpath(current);
    for (const entry of entries) {
      if (own.has(join(place, entry.name))) continue;
      const path = join(current, entry.name);
      if (entry.isDirectory() && !exclude.has(entry.name)) pending.push(path);
      if (!entry.isFile() && !entry.isSymbolicLink()) continue;
      const info = statOf(path);
      if (info?.isFile()) found.push({ path, bytes: info.size, mtimeMs: info.mtimeMs });
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

/** Asked here and not on another thread: to hand each of a million files over and back costs several times as much. */
function statOf(path: string): Stats | null {
  try {
    return statSync(path);
  } catch {
    return null; // a link to nowhere
  }
}
