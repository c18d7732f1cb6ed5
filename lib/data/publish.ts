import { open, readdir, realpath, rename, rm } from "node:fs/promises";
import { basename, dirname, isAbsolute, join, relative, resolve, sep } from "node:path";
import { UsageError } from "../errors.js";
import { optionName } from "../option-names.js";
import { readSmallFile, sizeLimits } from "../small-file.js";
import { datasetFileName, datasetFormat, parseShardFile } from "./dataset-file.js";

const ownFiles = new Set([
  datasetFileName,
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
]);

function isOwn(name: string): boolean {
  return ownFiles.has(name) || parseShardFile(name.replace(/\.idx$/, ".bin")) !== null;
}

/**
 * Refuses a folder that may not be replaced: one with anything but a data set in it, unless `overwrite`; and, in
 * any case, one that holds what is being read or the working folder.
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

/** Where the data set that was there is put while the new one takes its place. */
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

/** Puts a finished folder in the place of `out`. A crash leaves the old one as `out` or `out.old`, or the new one. */
export async function publish(finished: string, out: string): Promise<void> {
  const old = oldFolder(out);
  await rm(old, { recursive: true, force: true });
  try {
    await rename(out, old);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
  }
  await rename(finished, out);
  await syncFolder(dirname(out));
  await rm(old, { recursive: true, force: true });
}

/** Makes renames and new files in a folder durable. */
export async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
