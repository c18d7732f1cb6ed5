import { createHash } from "node:crypto";
import { readdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import { acquireRunLock, type RunLock } from "../checkpoint/lock.js";
import { boundedList } from "../core/bounded-list.js";
import { UsageError } from "../core/errors.js";
import { optionName } from "../core/option-names.js";
import { makeOwnFolder, removeOwnFolder } from "../files/own-folder.js";
import { replaceFile } from "../files/replace-file.js";
import { readSmallFile, utf8Of } from "../files/small-file.js";
import type { FinishedTask } from "./results.js";

const identityFile = "evaluation.json";
const taskPrefix = "task-";

/** Largest stored task. With logged samples, the largest published one has some 200 MB. */
const maxTaskBytes = 2 ** 31;

/** The identity of an evaluation: model, program and options, as texts by name. */
export type EvaluationIdentity = Readonly<Record<string, string>>;

/**
 * Finished tasks of an evaluation that is not finished, in a folder beside its result. A
 * continuation takes over the tasks that ask the same model the same questions.
 */
export class EvaluationJournal {
  readonly #folder: string;
  readonly #stored: ReadonlyMap<string, FinishedTask>;
  readonly #lock: RunLock;

  private constructor(folder: string, stored: ReadonlyMap<string, FinishedTask>, lock: RunLock) {
    this.#folder = folder;
    this.#stored = stored;
    this.#lock = lock;
  }

  /**
   * Opens the journal of a result file, and makes it if it does not exist. It stays locked until it
   * is closed or removed.
   * @param startOver discards tasks of another evaluation instead of refusing to go on
   * @throws UsageError naming each difference if the folder holds tasks of another evaluation, and
   *   naming the process if one uses it
   */
  static async open(
    folder: string,
    identity: EvaluationIdentity,
    startOver: boolean,
  ): Promise<EvaluationJournal> {
    await makeOwnFolder(folder, "[evaluate]");
    const lock = acquireRunLock(folder);
    try {
      const known = await readJson<EvaluationIdentity>(join(folder, identityFile));
      if (!startOver && known !== null && !isDeepStrictEqual(known, { ...identity })) {
        throw otherEvaluation(folder, known, identity);
      }
      if (startOver) {
        for (const name of await taskFiles(folder)) await rm(join(folder, name));
      }
      await replaceFile(
        join(folder, identityFile),
        `${JSON.stringify(identity, null, 2)}\n`,
        join(folder, `${identityFile}.tmp`),
      );
      const stored = new Map<string, FinishedTask>();
      for (const name of await taskFiles(folder)) {
        const task = await readJson<FinishedTask>(join(folder, name));
        if (task) stored.set(task.name, task);
      }
      return new EvaluationJournal(folder, stored, lock);
    } catch (error) {
      lock.release();
      throw error;
    }
  }

  /** Tasks that an earlier call has finished. */
  get stored(): ReadonlyMap<string, FinishedTask> {
    return this.#stored;
  }

  /** Stores a finished task. A crash leaves the whole task or none of it. */
  async write(task: FinishedTask): Promise<void> {
    const file = join(this.#folder, fileOf(task.name));
    await replaceFile(file, JSON.stringify(task), `${file}.tmp`);
  }

  /** Removes the folder, once the result is written. */
  async remove(): Promise<void> {
    await removeOwnFolder(this.#folder, "[evaluate]");
    this.close();
  }

  /** Lets another call go on from the finished tasks. The end of the process does so too. */
  close(): void {
    this.#lock.release();
  }
}

async function taskFiles(folder: string): Promise<string[]> {
  const names = await readdir(folder);
  return names.filter((name) => name.startsWith(taskPrefix) && name.endsWith(".json"));
}

/** Names of tasks may be paths, and longer than a file name may be. */
function fileOf(task: string): string {
  return `${taskPrefix}${createHash("sha256").update(task).digest("hex").slice(0, 32)}.json`;
}

async function readJson<T>(file: string): Promise<T | null> {
  try {
    return JSON.parse(utf8Of(await readSmallFile(file, { limit: maxTaskBytes }))) as T;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    // A file that is no JSON is not one that `write` has finished. The task is asked again.
    await rename(file, `${file}.damaged`);
    return null;
  }
}

function otherEvaluation(
  folder: string,
  known: EvaluationIdentity,
  asked: EvaluationIdentity,
): UsageError {
  const names = [...new Set([...Object.keys(known), ...Object.keys(asked)])];
  const differences = names
    .filter((name) => known[name] !== asked[name])
    .map((name) => `  ${name}: ${known[name] ?? "none"} there, ${asked[name] ?? "none"} now`);
  return new UsageError(
    `[evaluate] ${folder} holds finished tasks of another evaluation; ${optionName("startOver")} ` +
      `discards them\n${boundedList(differences)}`,
  );
}
