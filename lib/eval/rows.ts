import { join } from "node:path";
import { boundedList } from "../core/bounded-list.js";
import { DataError } from "../core/errors.js";
import { optionName } from "../core/option-names.js";
import { FileError, readSmallFile, utf8Of } from "../files/small-file.js";
import { expectFolder, findSplit, missingData, type SplitFiles } from "./data-files.js";
import { downloadSplit } from "./download.js";
import { type PlacedRow, readRows, readTexts } from "./read-rows.js";
import type { ExampleFile, Row, Task } from "./task.js";

/** Largest file of examples. The published ones have some 5 KB. */
const maxExampleBytes = 2 ** 24;

/** Where each row stands. Rows that a task makes of others have the place of those. */
const places = new WeakMap<Row, string>();

/**
 * Calls a function of a task for a row.
 * @throws DataError of the function, with the names of task, file and row
 */
export function inRow<T>(task: Task, row: Row, call: () => T): T {
  try {
    return call();
  } catch (cause) {
    throw withPlace(task, row, cause);
  }
}

/** Does so for a function that returns a promise. */
export async function inRowLater<T>(task: Task, row: Row, call: () => Promise<T>): Promise<T> {
  return await call().catch((cause: unknown) => {
    throw withPlace(task, row, cause);
  });
}

function withPlace(task: Task, row: Row, cause: unknown): unknown {
  if (!(cause instanceof DataError) || cause.message.startsWith("[")) return cause;
  const place = places.get(row) ?? "a row";
  return new DataError(`[evaluate] ${task.name}: ${place}: ${cause.message}`, { cause });
}

export interface DataOptions {
  /** Folder of all data sets. */
  data?: string;
  /** Downloads what is missing from the Hub into that folder. Default: false. */
  download?: boolean;
  /** Stops a download. */
  signal?: AbortSignal;
}

/** Reads the rows of tasks from a folder of data sets. */
export class TaskRows {
  readonly #options: DataOptions;
  /** Files that several tasks share. */
  readonly #shared = new Map<string, Promise<PlacedRow[]>>();

  constructor(options: DataOptions = {}) {
    this.#options = options;
  }

  /**
   * Rows that are scored.
   * @throws DataError if they are missing, damaged or lack a column
   */
  questionsOf(task: Task): Promise<Row[]> {
    return this.#rowsOf(task, task.data.split);
  }

  /** Rows that examples are chosen from. */
  examplesOf(task: Task): Promise<Row[]> {
    return this.#rowsOf(task, task.data.fewShotSplit ?? task.data.split);
  }

  /**
   * Looks for the files of a task's rows without reading them.
   * @param examples whether the task shows examples
   * @throws DataError if files are missing
   */
  async expectFiles(task: Task, examples: boolean): Promise<void> {
    const { split, fewShotSplit = split } = task.data;
    await this.#filesOf(task, split);
    const { file, examples: given } = task.fewShot ?? {};
    if (!examples || given) return;
    if (file) await this.exampleFile(task, file);
    else if (fewShotSplit !== split) await this.#filesOf(task, fewShotSplit);
  }

  /**
   * Description and examples of a text file in the folder.
   * @throws DataError if the file is missing or holds something else
   */
  async exampleFile(
    task: Task,
    file: ExampleFile,
  ): Promise<{ description: string; examples: readonly Row[] }> {
    const { data } = this.#options;
    const path = join(data ?? "DATA", file.path);
    const missing = (problem: string, cause?: unknown) =>
      new DataError(
        `[evaluate] ${task.name}: ${problem}; download ${file.source} to ${path}`,
        cause === undefined ? undefined : { cause },
      );
    if (data === undefined)
      throw missing(`pass the folder of its examples as ${optionName("data")}`);
    const bytes = await readSmallFile(path, { limit: maxExampleBytes }).catch((cause: Error) => {
      if (cause instanceof FileError || "code" in cause) {
        throw missing(`cannot read its examples: ${cause.message}`, cause);
      }
      throw cause;
    });
    return file.read(utf8Of(bytes), path);
  }

  async #rowsOf(task: Task, split: string): Promise<Row[]> {
    const { files, shared } = await this.#filesOf(task, split);
    const rows: Row[] = [];
    for (const file of files) {
      for (const { row, place } of await this.#read(task, file, shared)) {
        places.set(row, `${file}, ${place}`);
        const { keep } = task.data;
        if (shared && keep && !inRow(task, row, () => keep(row))) continue;
        checkColumns(task, row);
        rows.push(row);
      }
    }
    const prepared = prepare(task, rows);
    if (prepared.length > 0) return prepared;
    throw new DataError(
      `[evaluate] ${task.name}: expected rows in split ${split}, got none from ${boundedList(files, ", ")}`,
    );
  }

  #read(task: Task, file: string, shared: boolean): Promise<PlacedRow[]> {
    if (task.data.files !== undefined && task.kind === "text") return readTexts(file);
    if (!shared) return readRows(file);
    const known = this.#shared.get(file) ?? readRows(file);
    this.#shared.set(file, known);
    return known;
  }

  async #filesOf(task: Task, split: string): Promise<SplitFiles> {
    const { data, name } = task;
    if (data.files !== undefined) {
      const file = data.files[split];
      if (file !== undefined) return { files: [file], shared: false };
      const known = Object.keys(data.files).join(", ");
      throw new DataError(`[evaluate] ${name}: expected a file of split ${split}, got ${known}`);
    }
    const { data: root, download, signal } = this.#options;
    if (root === undefined) throw missingData(root, data, name, split);
    if (!download) await expectFolder(root);
    const found = await findSplit(root, data, name, split);
    if (found !== null) return found;
    if (!download) throw missingData(root, data, name, split);
    await downloadSplit(root, data, name, split, signal);
    const loaded = await findSplit(root, data, name, split);
    if (loaded === null) throw missingData(root, data, name, split);
    return loaded;
  }
}

function checkColumns(task: Task, row: Row): void {
  const lacking = task.data.columns.filter((name) => !Object.hasOwn(row, name));
  if (lacking.length === 0) return;
  inRow(task, row, () => {
    const has = boundedList(Object.keys(row), ", ") || "none";
    throw new DataError(`expected the columns ${lacking.join(", ")}, got a row with ${has}`);
  });
}

/** The rows as the task uses them. It prepares each on its own where that is possible. */
function prepare(task: Task, rows: Row[]): Row[] {
  const { prepareRows } = task;
  if (!prepareRows) return rows;
  return rows.flatMap((row) =>
    inRow(task, row, () => {
      const prepared = prepareRows([row]);
      const place = places.get(row);
      for (const made of prepared) if (place !== undefined) places.set(made, place);
      return prepared;
    }),
  );
}
