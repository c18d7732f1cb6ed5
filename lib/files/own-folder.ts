/**
 * Folders that the library makes under names of its own choosing beside what a user named:
 * `OUT.tmp`, `OUT.old`, `.trash`. A user may have something of that name, so only a folder with our
 * mark in it is ever removed or written to.
 */
import { lstat, mkdir, readdir, rm, rmdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { UsageError } from "../core/errors.js";

/** The file that marks a folder as one that this library made and may remove. */
export const markFile = ".llamaforge-temporary";

const markText =
  "LlamaForge made this folder for work under way and removes it with all that is in it.\n";

/** Who a path belongs to; an empty folder is as good as none. */
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

/** Whether there is a folder with our mark, or an empty one. */
export async function isOwnFolder(path: string): Promise<boolean> {
  return (await ownerOf(path)) === "us";
}

/**
 * Refuses a path where something is that this library did not make.
 * @param what in front of the message: the call that wants the path, `[prepare]`
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
 * Makes a folder with our mark; one of ours that is there stays with what is in it. Its parent must
 * exist.
 * @throws UsageError if something that is not ours is there
 */
export async function makeOwnFolder(path: string, what: string): Promise<void> {
  await refuseForeign(path, what);
  await mkdir(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== "EEXIST") throw error;
  });
  await markFolder(path);
}

/** Puts our mark into a folder that is known to be ours. */
export async function markFolder(path: string): Promise<void> {
  await writeFile(join(path, markFile), markText, { flush: true });
}

/** Takes the mark off a folder that has become the user's. */
export async function unmarkFolder(path: string): Promise<void> {
  await rm(join(path, markFile), { force: true });
}

/**
 * Removes a folder of ours, if it is there. The mark goes last: what a crash leaves of the folder
 * is still ours.
 * @throws UsageError if it is not ours
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
