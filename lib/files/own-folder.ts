/**
 * Folders that the library makes under names of its own choosing, next to a path that the user
 * named: `OUT.tmp`, `OUT.old`, `.trash`. The user may have something of that name. Only folders
 * that contain the library's mark are therefore ever removed or written to.
 */
import { lstat, mkdir, readdir, rm, rmdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { UsageError } from "../core/errors.js";

/** Name of the file that marks a folder as made by this library, which may remove it. */
export const markFile = ".llamaforge-temporary";

const markText =
  "LlamaForge made this folder for work under way and removes it with all that is in it.\n";

/** Owner of a path. An empty folder counts as the library's. */
type Owner = "nobody" | "us" | "others";

async function ownerOf(path: string): Promise<Owner> {
  const status = await lstat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT" || error.code === "ENOTDIR") return null;
    throw error;
  });
  if (status === null) return "nobody";
  if (!status.isDirectory()) return "others";
  const names = await readdir(path);
  if (names.length === 0) return "us";
  return names.includes(markFile) && (await isFile(join(path, markFile))) ? "us" : "others";
}

async function isFile(path: string): Promise<boolean> {
  return (await lstat(path)).isFile();
}

/** Whether the path is a folder with the library's mark, or an empty folder. */
export async function isOwnFolder(path: string): Promise<boolean> {
  return (await ownerOf(path)) === "us";
}

/**
 * Refuses a path that is occupied by something this library did not make.
 * @param what start of the message: the call that wants the path, such as `[prepare]`
 * @throws UsageError that names the path
 */
export async function refuseForeign(path: string, what: string): Promise<void> {
  if ((await ownerOf(path)) !== "others") return;
  throw new UsageError(
    `${what} ${path} is in the way: LlamaForge uses this name for work under way, but did not make what is there ` +
      `(it has no ${markFile}), so it is left alone. Move or rename it, or choose another output`,
  );
}

/**
 * Makes a folder with the library's mark. An existing folder of the library stays, with its
 * content. The parent must exist.
 * @throws UsageError if the path is occupied by something else
 */
export async function makeOwnFolder(path: string, what: string): Promise<void> {
  await refuseForeign(path, what);
  await mkdir(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== "EEXIST") throw error;
  });
  await markFolder(path);
}

/** Marks a folder that is known to be the library's. */
export async function markFolder(path: string): Promise<void> {
  await writeFile(join(path, markFile), markText, { flush: true });
}

/** Removes the mark from a folder that has become the user's. */
export async function unmarkFolder(path: string): Promise<void> {
  await rm(join(path, markFile), { force: true });
}

/**
 * Removes a folder of the library, if it exists. The mark goes last, so that the remains of a crash
 * still belong to the library.
 * @throws UsageError if the folder is not the library's
 */
export async function removeOwnFolder(path: string, what: string): Promise<void> {
  await refuseForeign(path, what);
  const names = await readdir(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return null;
    throw error;
  });
  if (names === null) return;
  for (const name of names) {
    if (name !== markFile) await rm(join(path, name), { recursive: true, force: true });
  }
  await unmarkFolder(path);
  await rmdir(path);
}
