import { readdir, realpath, rename, rm, stat } from "node:fs/promises";
import { basename, dirname, isAbsolute, join, relative, resolve, sep } from "node:path";
import { UsageError } from "../core/errors.js";
import { optionName } from "../core/option-names.js";
import { datasetFileName, datasetFormat, parseShardFile } from "../data/dataset-file.js";
import {
  makeOwnFolder,
  markFile,
  markFolder,
  refuseForeign,
  removeOwnFolder,
  unmarkFolder,
} from "../files/own-folder.js";
import { readSmallFile, sizeLimits } from "../files/small-file.js";
import { syncFolder } from "../files/sync-folder.js";
import { readJournal, workFiles } from "./journal.js";

const ownFiles = new Set([
  datasetFileName,
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  // A call that is killed right behind its last step leaves this there.
  ...workFiles,
  markFile,
]);

function isOwn(name: string): boolean {
  return ownFiles.has(name) || parseShardFile(name.replace(/\.idx$/, ".bin")) !== null;
}

/**
 * Refuses a folder that may not be replaced: one with anything but a data set in it, unless
 * `overwrite`; and, in any case, one that holds what is being read or the working folder. So are
 * folders refused that have the names of the work under way, `OUT.tmp` and `OUT.old`, and are not
 * this library's.
 */
export async function checkTarget(
  out: string,
  inputs: readonly string[],
  overwrite: boolean,
): Promise<void> {
  for (const taken of [out, workFolder(out), oldFolder(out)]) {
    const path = [...inputs, process.cwd()].find((used) => isInside(resolve(used), taken));
    if (path === undefined) continue;
    throw new UsageError(
      `[prepare] ${taken} would be replaced, but ${path} is in it: choose another`,
    );
  }
  const names = await readdir(out).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return [];
    throw new UsageError(`[prepare] cannot use ${out} as output folder: ${error.message}`, {
      cause: error,
    });
  });
  await adoptWork(workFolder(out));
  for (const folder of [workFolder(out), oldFolder(out)]) await refuseForeign(folder, "[prepare]");
  if (names.length === 0 || overwrite) return;
  const foreign = names.filter((name) => !isOwn(name));
  if (foreign.length > 0 || !(await isDataset(out))) {
    const found = foreign[0] ?? names[0];
    throw new UsageError(
      `[prepare] ${out} is not empty and no data set (it has ${found}): choose another folder, or replace it (${optionName("overwrite")})`,
    );
  }
}

/** Where a data set is made. */
export function workFolder(out: string): string {
  return `${out}.tmp`;
}

/** Puts our mark into unfinished work of a version that had none; its journal proves it. */
async function adoptWork(folder: string): Promise<void> {
  if (typeof (await readJournal(folder))?.identity === "string") await markFolder(folder);
}

/** Makes the folder that a data set is made in, empty; what was there of ours goes. */
export async function makeWorkFolder(folder: string): Promise<void> {
  await removeOwnFolder(folder, "[prepare]");
  await makeOwnFolder(folder, "[prepare]");
}

/** Removes the folder that a data set is made in. */
export async function removeWorkFolder(folder: string): Promise<void> {
  await removeOwnFolder(folder, "[prepare]");
}

/** The folder that holds the data set that was there while the new one takes its place. */
function oldFolder(out: string): string {
  return `${out}.old`;
}

/** The paths that a preparation makes, without links. The folder that they are in must be there. */
export async function ownPaths(out: string): Promise<Set<string>> {
  const place = join(await realpath(dirname(out)), basename(out));
  return new Set([place, workFolder(place), oldFolder(place), `${place}.lock`]);
}

function isInside(path: string, folder: string): boolean {
  const way = relative(folder, path);
  return !(way === ".." || way.startsWith(`..${sep}`) || isAbsolute(way));
}

/** Whether it says that it is a data set; it need not be a whole one. */
async function isDataset(folder: string): Promise<boolean> {
  try {
    const file = join(folder, datasetFileName);
    const bytes = await readSmallFile(file, { limit: sizeLimits.dataset });
    const json: unknown = JSON.parse(bytes.toString("utf8"));
    return (json as { format?: unknown } | null)?.format === datasetFormat;
  } catch {
    return false;
  }
}

/**
 * Puts a finished folder in the place of `out`. A crash leaves the old data set as `out` or in
 * `out.old`, or the new one; what only work under way has is removed last, so that until then the
 * same call goes on with it.
 */
export async function publish(finished: string, out: string): Promise<void> {
  const old = oldFolder(out);
  const moved = join(old, basename(out));
  const replaces = await stat(out).then(
    () => true,
    () => false,
  );
  if (replaces) {
    // Moved into a folder of ours, it needs no mark of its own.
    await removeOwnFolder(old, "[prepare]");
    await makeOwnFolder(old, "[prepare]");
    await rename(out, moved);
  }
  try {
    await rename(finished, out);
  } catch (error) {
    if (replaces) await rename(moved, out).catch(() => {});
    throw error;
  }
  await syncFolder(dirname(out));
  await removeOwnFolder(old, "[prepare]");
  for (const name of workFiles) await rm(join(out, name), { force: true });
  await unmarkFolder(out);
  await syncFolder(out);
}
