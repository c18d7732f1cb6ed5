import { readdir, realpath, rename, rm, stat } from "node:fs/promises";
import { basename, dirname, isAbsolute, join, relative, resolve, sep } from "node:path";
import { UsageError } from "../core/errors.js";
import { optionName } from "../core/option-names.js";
import {
  chatTemplateFile,
  datasetFileName,
  datasetFormat,
  parseShardFile,
} from "../data/dataset-file.js";
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
  chatTemplateFile,
  // A call that is killed right after its last step leaves these files in the data set.
  ...workFiles,
  markFile,
]);

function isOwn(name: string): boolean {
  return ownFiles.has(name) || parseShardFile(name.replace(/\.(idx|mask)$/, ".bin")) !== null;
}

/**
 * Refuses a folder that may not be replaced. Without `overwrite`, it may contain only a data set.
 * In any case neither it nor the working folders next to it may contain an input or the current
 * directory. Folders named `OUT.tmp` or `OUT.old`, the names of work in progress, are refused
 * unless this library made them.
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

/** Path of the folder in which a data set is made. */
export function workFolder(out: string): string {
  return `${out}.tmp`;
}

/**
 * Marks unfinished work of an older version, which wrote no marks, as this library's. Its journal
 * proves the origin.
 */
async function adoptWork(folder: string): Promise<void> {
  if (typeof (await readJournal(folder))?.identity === "string") await markFolder(folder);
}

/** Makes an empty working folder, and removes an earlier one of this library. */
export async function makeWorkFolder(folder: string): Promise<void> {
  await removeOwnFolder(folder, "[prepare]");
  await makeOwnFolder(folder, "[prepare]");
}

/** Removes the working folder. */
export async function removeWorkFolder(folder: string): Promise<void> {
  await removeOwnFolder(folder, "[prepare]");
}

/** Path of the folder that keeps the replaced data set until the new one is in place. */
function oldFolder(out: string): string {
  return `${out}.old`;
}

/** Resolved paths of everything that a preparation creates. The parent folder must exist. */
export async function ownPaths(out: string): Promise<Set<string>> {
  const place = join(await realpath(dirname(out)), basename(out));
  return new Set([place, workFolder(place), oldFolder(place), `${place}.lock`]);
}

function isInside(path: string, folder: string): boolean {
  const way = relative(folder, path);
  return !(way === ".." || way.startsWith(`..${sep}`) || isAbsolute(way));
}

/** Whether a folder claims to be a data set. It may be incomplete. */
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
 * Puts a finished folder in the place of `out`. After a crash, the old data set is in `out` or
 * `out.old`, or the new one is in `out`. The working files are removed last: until then a call with
 * the same options resumes the work.
 */
export async function publish(finished: string, out: string): Promise<void> {
  const old = oldFolder(out);
  const moved = join(old, basename(out));
  const replaces = await stat(out).then(
    () => true,
    () => false,
  );
  if (replaces) {
    // Inside a folder of this library, the old data set needs no mark of its own.
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
