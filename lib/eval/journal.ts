import { createHash } from "node:crypto";
import { readdir, rename } from "node:fs/promises";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
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

/** What an evaluation is about: model, program and options, as texts by name. */
export type EvaluationIdentity = Readonly<Record<string, string>>;

/**
 * Finished tasks of an evaluation that is not finished, in a folder beside its result. A
 * continuation takes over the tasks that ask the same model the same questions.
 */
export class EvaluationJournal {
  readonly #folder: string;
  readonly #stored: ReadonlyMap<string, FinishedTask>;

  private constructor(folder: string, stored: ReadonlyMap<string, FinishedTask>) {
    this.#folder = folder;
    this.#stored = stored;
  }

  /**
   * Opens the journal of a result file, and makes it if it does not exist.
   * @param startOver discards tasks of another evaluation instead of refusing to go on
   * @throws UsageError naming each difference if the folder holds tasks of another evaluation
   */
  static async open(
    folder: string,
    identity: EvaluationIdentity,
    startOver: boolean,
  ): Promise<EvaluationJournal> {
    const known = await readJson<EvaluationIdentity>(join(folder, identityFile));
    if (known !== null && !isDeepStrictEqual(known, { ...identity })) {
      if (!startOver) throw otherEvaluation(folder, known, identity);
      await removeOwnFolder(folder, "[evaluate]");
    } else if (startOver) await removeOwnFolder(folder, "[evaluate]");
    await makeOwnFolder(folder, "[evaluate]");
    await replaceFile(
      join(folder, identityFile),
      `${JSON.stringify(identity, null, 2)}\n`,
      join(folder, `${identityFile}.tmp`),
    );
    const stored = new Map<string, FinishedTask>();
    for (const name of await readdir(folder)) {
      if (!name.startsWith(taskPrefix) || !name.endsWith(".json")) continue;
      const task = await readJson<FinishedTask>(join(folder, name));
      if (task) stored.set(task.name, task);
    }
    return new EvaluationJournal(folder, stored);
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
  }
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
