import { isDeepStrictEqual } from "node:util";
import { checkInteger } from "../core/check-values.js";
import { ArgumentError } from "../core/errors.js";
import { optionName } from "../core/option-names.js";
import type { Shown } from "./prompt.js";
import { PythonRandom } from "./python-random.js";
import { inRow, type TaskRows } from "./rows.js";
import type { Row, Task } from "./task.js";

/** Seed of the examples in lm-evaluation-harness. */
export const fewShotSeed = 1234;

export interface FewShotOptions {
  /** Number of examples. Default: the task's own. */
  count?: number;
  /** Default: 1234. */
  seed?: number;
}

/**
 * Chooses the examples of a task's questions. The random sampler goes on from question to question
 * with one sequence of random numbers: ask for all questions in the order of their rows, also for
 * those that are not scored here.
 */
export class Examples {
  readonly count: number;
  readonly #task: Task;
  readonly #description: string | ((row: Row) => string);
  readonly #pool: readonly Row[];
  readonly #leavesOut: boolean;
  readonly #random: PythonRandom;

  /**
   * Reads the examples of a task, if it shows any.
   * @throws DataError if their rows are missing or damaged
   * @throws ArgumentError if there are fewer than `count`
   */
  static async open(task: Task, rows: TaskRows, options: FewShotOptions = {}): Promise<Examples> {
    const { count = task.fewShot?.count ?? 0, seed = fewShotSeed } = options;
    checkInteger("evaluate", optionName("fewShot"), count, { min: 0 });
    checkInteger("evaluate", optionName("seed"), seed);
    const file = task.fewShot?.file;
    const { examples, description = task.description ?? "" } = file
      ? await rows.exampleFile(task, file)
      : { examples: task.fewShot?.examples };
    const pool = count === 0 ? [] : (examples ?? (await rows.examplesOf(task)));
    return new Examples(task, count, seed, pool, description);
  }

  private constructor(
    task: Task,
    count: number,
    seed: number,
    pool: readonly Row[],
    description: string | ((row: Row) => string),
  ) {
    this.count = task.kind === "text" ? 0 : count;
    this.#task = task;
    this.#description = description;
    this.#pool = pool;
    this.#random = new PythonRandom(seed);
    const { split, fewShotSplit = split } = task.data;
    const fixed = task.fewShot?.examples !== undefined || task.fewShot?.file !== undefined;
    this.#leavesOut = task.fewShot?.leavesOutQuestion ?? (!fixed && split === fewShotSplit);
    const needed = this.count > 0 && this.#leavesOut ? this.count + 1 : this.count;
    if (needed > pool.length) {
      const most = Math.max(0, pool.length - (needed - this.count));
      throw new ArgumentError(
        `[evaluate] expected at most ${most} for ${optionName("fewShot")}, the examples of ` +
          `${task.name}, got ${this.count}`,
      );
    }
  }

  /** Description and examples of the next question. */
  next(question: Row): Shown {
    const description = this.#description;
    return {
      description:
        typeof description === "string"
          ? description
          : inRow(this.#task, question, () => description(question)),
      examples: this.count === 0 ? [] : this.#choose(question),
    };
  }

  #choose(question: Row): readonly Row[] {
    const { count } = this;
    const isOther = (row: Row): boolean => !isDeepStrictEqual(row, question);
    if (this.#task.fewShot?.sampler !== "random") {
      const pool = this.#leavesOut ? firstOf(this.#pool, count, isOther) : this.#pool;
      return pool.slice(0, count);
    }
    if (!this.#leavesOut) return this.#random.sample(this.#pool, count);
    const drawn = this.#random.sample(this.#pool, count + 1).filter(isOther);
    if (drawn.length >= count) return drawn.slice(0, count);
    // The question stands in the rows several times, and was drawn more than once.
    const others = this.#pool.filter(isOther);
    if (others.length >= count) return this.#random.sample(others, count);
    throw new ArgumentError(
      `[evaluate] expected at most ${others.length} for ${optionName("fewShot")}, because only so ` +
        `many examples of ${this.#task.name} differ from the question, got ${count}`,
    );
  }
}

/** The first `count` rows for which `holds`. */
function firstOf(rows: readonly Row[], count: number, holds: (row: Row) => boolean): Row[] {
  const found: Row[] = [];
  for (const row of rows) {
    if (found.length === count) break;
    if (holds(row)) found.push(row);
  }
  return found;
}
