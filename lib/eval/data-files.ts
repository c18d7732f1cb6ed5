import { lstat, readdir, stat } from "node:fs/promises";
import { join, relative, sep } from "node:path";
import { DataError } from "../core/errors.js";
import { optionName } from "../core/option-names.js";
import { listFiles } from "../files/list-folder.js";
import type { TaskData } from "./task.js";

/** The files of a split. */
export interface SplitFiles {
  /** Paths, in the order of their rows. */
  files: string[];
  /** Whether they lie outside of a configuration's folder, and may serve several tasks. */
  shared: boolean;
}

const extension = String.raw`\.(?:parquet|(?:jsonl|ndjson|json)(?:\.gz|\.zst)?)`;
const shard = String.raw`(?:-(\d+)-of-(\d+)(?:-[0-9a-f]+)?)?`;

/**
 * Finds the files of a split among the files of a data set, by the names that the Hub uses:
 * `CONFIG/SPLIT-00000-of-00002.parquet`, `data/SPLIT.jsonl`, `CONFIG/SPLIT/0000.parquet`,
 * `SPLIT.jsonl.gz`, `data/NAME_SPLIT.jsonl`.
 * @param paths paths below the data set's folder, with `/`
 * @returns null if there are none
 * @throws DataError if shards are missing
 */
export function matchSplit(
  paths: readonly string[],
  config: string | undefined,
  split: string,
): SplitFiles | null {
  const own = config === undefined ? [] : [`${config}/`, `${config}/data/`, `data/${config}/`];
  const inFolder = (folder: string): SplitFiles | null => {
    const names = paths
      .filter((path) => path.startsWith(folder))
      .map((path) => path.slice(folder.length));
    const files = namesOfSplit(names, split).map((name) => folder + name);
    return files.length === 0 ? null : { files, shared: !own.includes(folder) };
  };
  for (const folder of [...own, "data/", "default/", ""]) {
    const found = inFolder(folder);
    if (found !== null) return found;
  }
  if (config !== undefined) return null;
  // The only configuration of a data set may have any name.
  const folders = new Set(paths.filter((path) => path.includes("/")).map(firstFolder));
  const found = [...folders].flatMap((folder) => inFolder(folder) ?? []);
  return found.length === 1 ? (found[0] as SplitFiles) : null;
}

/** `CONFIG/` of `CONFIG/SPLIT.jsonl`. */
function firstFolder(path: string): string {
  return path.slice(0, path.indexOf("/") + 1);
}

function namesOfSplit(names: readonly string[], split: string): string[] {
  const word = split.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const exact = allShards(names, new RegExp(`^${word}${shard}${extension}$`));
  if (exact.length > 0) return exact;
  const inFolder = names.filter((name) => new RegExp(`^${word}/[^/]+${extension}$`).test(name));
  if (inFolder.length > 0) return inFolder.sort();
  // A file that is named after its data set too counts if it is the only one.
  const longer = names.filter((name) => new RegExp(`^[^/]+[-_.]${word}${extension}$`).test(name));
  return longer.length === 1 ? longer : [];
}

/** The files of one format that match, complete and in order. */
function allShards(names: readonly string[], pattern: RegExp): string[] {
  const matches = names.flatMap((name) => {
    const match = pattern.exec(name);
    return match ? [{ name, index: match[1], count: match[2] }] : [];
  });
  const whole = matches.filter(({ count }) => count === undefined).map(({ name }) => name);
  // One file in two formats holds the rows twice.
  if (whole.length > 0) return whole.sort().slice(0, 1);
  const [first] = matches;
  if (first === undefined) return [];
  const shards = matches.filter(({ count }) => count === first.count);
  const has = new Set(shards.map(({ index }) => Number(index)));
  const missing = Array.from({ length: Number(first.count) }, (_, i) => i).filter(
    (index) => !has.has(index),
  );
  if (missing.length > 0) {
    throw new DataError(
      `[evaluate] ${first.name}: expected ${Number(first.count)} files, missing those with ` +
        `number ${missing.join(", ")}`,
    );
  }
  return shards.map(({ name }) => name).sort();
}

/**
 * Folders that may hold a task's data set, best first: `FOLDER`, `NAMESPACE/NAME`, `NAME`, and the
 * snapshots of a cache of the Hub.
 */
export function foldersOf(data: TaskData, taskName: string): string[] {
  const name = data.dataset.split("/").at(-1) as string;
  return [...new Set([data.folder ?? taskName, data.dataset, name])];
}

/**
 * Finds the files of a split below the folder of all data sets.
 * @returns null if no folder of the task has them
 * @throws DataError for a folder that cannot be read, and for missing shards
 */
export async function findSplit(
  root: string,
  data: TaskData,
  taskName: string,
  split: string,
): Promise<SplitFiles | null> {
  const folders = [
    ...foldersOf(data, taskName).map((folder) => join(root, folder)),
    ...(await snapshotsOf(root, data)),
  ];
  for (const folder of folders) {
    if (!(await isFolder(folder))) continue;
    const { files } = await listFiles(folder, new Set([".git", ".cache"]));
    const paths = files.map(({ path }) => relative(folder, path).split(sep).join("/"));
    const found = matchSplit(paths, data.config, split);
    if (found !== null) return { ...found, files: found.files.map((path) => join(folder, path)) };
  }
  return null;
}

/** @throws DataError if the folder of all data sets does not exist, or is a file */
export async function expectFolder(root: string): Promise<void> {
  const status = await stat(root).catch(() => null);
  if (status?.isDirectory()) return;
  const problem = status ? "is a file" : "does not exist";
  throw new DataError(
    `[evaluate] expected the folder of the data sets for ${optionName("data")}: ${root} ${problem}`,
  );
}

/** Folders of a cache of the Hub: that of the revision, or the only one. */
async function snapshotsOf(root: string, { dataset, revision }: TaskData): Promise<string[]> {
  const folder = join(root, `datasets--${dataset.replaceAll("/", "--")}`, "snapshots");
  const names = await readdir(folder).catch((): string[] => []);
  if (revision !== undefined && names.includes(revision)) return [join(folder, revision)];
  return revision === undefined && names.length === 1 ? [join(folder, names[0] as string)] : [];
}

async function isFolder(path: string): Promise<boolean> {
  try {
    const status = await lstat(path);
    return status.isDirectory() || status.isSymbolicLink();
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR") return false;
    throw new DataError(`[evaluate] cannot read ${path}: ${message}`, { cause });
  }
}

/** An error that names the data set, the files to download, and the folder to put them in. */
export function missingData(
  root: string | undefined,
  data: TaskData,
  taskName: string,
  split: string,
): DataError {
  const { dataset, config, revision = "main" } = data;
  const files = `the files of split ${split}, such as ${config ?? "data"}/${split}-*.parquet,`;
  const set = `data set ${dataset}${config === undefined ? "" : `, configuration ${config}`}`;
  const where =
    root === undefined
      ? `no folder of data sets; pass one as ${optionName("data")}`
      : `not in ${foldersOf(data, taskName)
          .map((folder) => join(root, folder))
          .join(", ")}`;
  return new DataError(
    `[evaluate] ${taskName}: rows of split ${split} are missing (${set}, revision ${revision}): ` +
      `${where}. Download ${files} from https://huggingface.co/datasets/${dataset}/tree/${revision} ` +
      `to ${join(root ?? "DATA", dataset, config ?? "data")}, put a file ${split}.jsonl in ` +
      `${join(root ?? "DATA", data.folder ?? taskName)}, or pass ${optionName("download")}`,
  );
}
