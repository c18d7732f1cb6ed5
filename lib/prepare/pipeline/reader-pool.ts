import { Worker } from "node:worker_threads";
import { namesAreFlags } from "../../core/option-names.js";
import { systemRefusal } from "../../core/system-refusal.js";
import { type ReadTask, readBatches, type TextBatch } from "./batch.js";
import { receiveError, type SentError } from "./errors.js";

/** Number of batches that one thread may have ready and unread. */
const allowance = 4;

export type ToReader = { kind: "task"; task: ReadTask; allowance: number } | { kind: "more" };
export type FromReader =
  | { kind: "batch"; batch: TextBatch }
  | { kind: "done" }
  | { kind: "failed"; error: SentError };

/**
 * Yields the batches of all tasks in order. Several threads read side by side: while one task is
 * consumed, the next ones are read ahead by up to a few batches each.
 * @param threads number of threads; 0 reads in this thread
 * @param signal ends the reading, also while a long document is read
 * @throws the signal's reason
 */
export async function* readInOrder(
  tasks: Iterable<ReadTask>,
  threads: number,
  signal?: AbortSignal,
): AsyncGenerator<TextBatch> {
  if (threads === 0) {
    for (const task of tasks) {
      yield* readBatches({ ...task, options: { ...task.options, signal } });
    }
    return;
  }
  const iterator = tasks[Symbol.iterator]();
  const readers = Array.from({ length: threads }, () => new Reader());
  const abort = (): void => {
    for (const reader of readers) reader.fail(signal?.reason);
  };
  signal?.addEventListener("abort", abort);
  try {
    const running: Reader[] = [];
    const idle = [...readers];
    for (;;) {
      for (let reader = idle.pop(); reader !== undefined; reader = idle.pop()) {
        const { value: task, done } = iterator.next();
        if (done) break;
        reader.start(task);
        running.push(reader);
      }
      const reader = running.shift();
      if (reader === undefined) return;
      for (;;) {
        const batch = await reader.next();
        if (batch === null) break;
        yield batch;
      }
      idle.push(reader);
    }
  } finally {
    signal?.removeEventListener("abort", abort);
    await Promise.all(readers.map((reader) => reader.stop()));
  }
}

/** A reader thread and the batches it has sent. */
class Reader {
  readonly #worker = new Worker(new URL("./reader-thread.js", import.meta.url), {
    execArgv: [],
    // The thread has to name options in its messages like this process does: one user reads both.
    workerData: { flags: namesAreFlags() },
  });
  readonly #queue: FromReader[] = [];
  #failure: Error | null = null;
  #wake = (): void => {};

  constructor() {
    this.#worker.on("message", (message: FromReader) => {
      this.#queue.push(message);
      this.#wake();
    });
    this.#worker.on("error", (error) => this.fail(systemRefusal(error) ?? error));
    this.#worker.on("exit", (code) => this.fail(new Error(`a reader ended with code ${code}`)));
  }

  start(task: ReadTask): void {
    this.#worker.postMessage({ kind: "task", task, allowance } satisfies ToReader);
  }

  /** The next batch of the task, or null after the last. */
  async next(): Promise<TextBatch | null> {
    for (;;) {
      const message = this.#queue.shift();
      if (message?.kind === "batch") {
        this.#worker.postMessage({ kind: "more" } satisfies ToReader);
        return message.batch;
      }
      if (message?.kind === "done") return null;
      if (message?.kind === "failed") throw receiveError(message.error);
      if (this.#failure !== null) throw this.#failure;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  async stop(): Promise<void> {
    this.#worker.removeAllListeners("exit");
    await this.#worker.terminate();
  }

  /** Makes the wait for the next batch end with an error. */
  fail(error: Error): void {
    this.#failure ??= error;
    this.#wake();
  }
}
