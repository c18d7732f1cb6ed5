import { accessSync, constants, type Dirent, type Stats, statSync } from "node:fs";
import { readdir, realpath } from "node:fs/promises";
import { join } from "node:path";
import { type PassedOver, type PassedOverReason, reasonOf } from "./passed-over.js";

/** A file found in a folder, with its size and modification time. */
export interface FoundFile {
  path: string;
  bytes: number;
  mtimeMs: number;
}

/** The content of a folder: readable files, and all other entries with the reason. */
export interface FolderListing {
  files: FoundFile[];
  passed: PassedOver[];
  /** Whether some file may have several names, by symbolic or hard links. */
  linked: boolean;
}

/**
 * Lists the files of a folder and its subfolders. They are ordered by path in UTF-16 units, so that
 * every file system gives the same order. Symbolic links to folders are not followed, because they
 * could lead out of the folder or in a circle. Links to files are followed, because the Hugging
 * Face cache consists of them.
 * @param exclude names of folders that are not entered
 * @param own     resolved paths of files and folders that are omitted without a note
 */
export async function listFiles(
  folder: string,
  exclude: ReadonlySet<string>,
  own: ReadonlySet<string> = new Set(),
): Promise<FolderListing> {
  const found: FoundFile[] = [];
  const passed: PassedOver[] = [];
  let linked = false;
  const pending = [folder];
  for (let current = pending.pop(); current !== undefined; current = pending.pop()) {
    const entries = await entriesOf(current);
    if (typeof entries === "string") {
      passed.push({ path: current, reason: entries, unlisted: true });
      continue;
    }
    const place = own.size === 0 ? current : await realpath(current);
    for (const entry of entries) {
      if (own.has(join(place, entry.name))) continue;
      const path = join(current, entry.name);
      if (entry.isDirectory()) {
        if (exclude.has(entry.name)) passed.push({ path, reason: "excluded" });
        else pending.push(path);
        continue;
      }
      const status = statusOf(path);
      if (typeof status === "string") passed.push({ path, reason: status });
      else {
        found.push({ path, bytes: status.size, mtimeMs: status.mtimeMs });
        linked ||= entry.isSymbolicLink() || status.nlink > 1;
      }
    }
  }
  return { files: found.sort(byPath), passed: passed.sort(byPath), linked };
}

/** Compares two files by path, in UTF-16 units. */
export function byPath(a: { path: string }, b: { path: string }): number {
  return a.path < b.path ? -1 : 1;
}

async function entriesOf(folder: string): Promise<Dirent[] | PassedOverReason> {
  try {
    return await readdir(folder, { withFileTypes: true });
  } catch (error) {
    return reasonOf(error);
  }
}

/**
 * The status of a readable file, or the reason why it cannot be read. Synchronous, because handing
 * each of a million files to another thread and back costs several times as much.
 */
export function statusOf(path: string): Stats | PassedOverReason {
  try {
    const status = statSync(path);
    if (status.isDirectory()) return "linkedFolder";
    if (!status.isFile()) return "special";
    accessSync(path, constants.R_OK);
    return status;
  } catch (error) {
    return reasonOf(error);
  }
}

/**
 * Among several names of one file, all but the first. Inode numbers may need all of their 64 bits.
 */
export function furtherNames(files: readonly FoundFile[]): Set<FoundFile> {
  const known = new Set<string>();
  return new Set(
    files.filter(({ path }) => {
      const { dev, ino } = statSync(path, { bigint: true });
      const identity = `${dev}:${ino}`;
      const isFurther = known.has(identity);
      known.add(identity);
      return isFurther;
    }),
  );
}
