import { type ChildProcess, fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import { DataError } from "../../core/errors.js";
import type { TokenDType } from "../../data/dataset-file.js";
import type { Tokenizer } from "../../data/tokenizer.js";
import { type EncodedBatch, type EncodeRequest, encodePieces } from "./encode.js";
import { receiveError, type SentError } from "./errors.js";

export type ToEncoder =
  | { kind: "start"; tokenizer: string; dtype: TokenDType }
  | { kind: "encode"; request: EncodeRequest };
export type FromEncoder =
  | { kind: "ready" }
  | { kind: "encoded"; batch: EncodedBatch }
  | { kind: "failed"; error: SentError };

/** Turns pieces of text into ids. */
export interface Encoder {
  /** Number of batches worth having in flight at once. */
  readonly width: number;
  encode(request: EncodeRequest): Promise<EncodedBatch>;
  stop(): Promise<void>;
}

/**
 * Starts encoders as child processes, one per core. Threads would share one allocator, and one pool
 * of native threads (four by default) between all encoding and all file access.
 * @param folder folder with the tokenizer's files
 * @param count  number of processes; 0 encodes in this process, on as many threads as the
 *   tokenizer's package takes
 */
export async function startEncoder(
  tokenizer: Tokenizer,
  folder: string,
  dtype: TokenDType,
  count: number,
): Promise<Encoder> {
  if (count === 0) {
    return {
      width: 1,
      encode: (request) => encodePieces(request, tokenizer, dtype),
      stop: async () => {},
    };
  }
  const children: EncoderProcess[] = [];
  const stop = async (): Promise<void> => {
    await Promise.all(children.map((child) => child.stop()));
  };
  try {
    while (children.length < count) children.push(new EncoderProcess(folder, dtype));
    await Promise.all(children.map((child) => child.ready));
  } catch (error) {
    await stop();
    throw error;
  }
  return {
    width: 2 * count,
    encode: (request) => {
      const least = children.reduce((a, b) => (b.underWay < a.underWay ? b : a));
      return least.encode(request);
    },
    stop,
  };
}

interface Waiting<T> {
  resolve: (value: T) => void;
  reject: (error: Error) => void;
}

class EncoderProcess {
  readonly ready: Promise<void>;
  readonly #child: ChildProcess;
  readonly #waiting: Waiting<EncodedBatch>[] = [];
  #failure: Error | null = null;
  #rejectReady: (error: Error) => void = () => {};

  /** @throws DataError if the system cannot start a process */
  constructor(folder: string, dtype: TokenDType) {
    this.#child = forkEncoder();
    this.ready = new Promise((resolve, reject) => {
      this.#rejectReady = reject;
      this.#child.on("message", (message: FromEncoder) => {
        if (message.kind === "ready") resolve();
        else if (message.kind === "encoded") this.#waiting.shift()?.resolve(message.batch);
        else this.#fail(receiveError(message.error));
      });
    });
    this.ready.catch(() => {});
    this.#child.on("error", (cause) => this.#fail(unusable(cause)));
    this.#child.on("exit", (code, signal) => {
      this.#fail(
        new DataError(
          `[prepare] a tokenizer process ended with ${signal ?? code}; the same call goes on with the work, ` +
            "with fewer workers if memory ran out",
        ),
      );
    });
    this.#send({ kind: "start", tokenizer: folder, dtype });
  }

  get underWay(): number {
    return this.#waiting.length;
  }

  encode(request: EncodeRequest): Promise<EncodedBatch> {
    return new Promise((resolve, reject) => {
      if (this.#failure !== null) return reject(this.#failure);
      this.#waiting.push({ resolve, reject });
      this.#send({ kind: "encode", request });
    });
  }

  async stop(): Promise<void> {
    const { pid, exitCode, signalCode } = this.#child;
    this.#child.removeAllListeners("exit");
    // A process that never started never exits.
    if (pid === undefined || exitCode !== null || signalCode !== null) return;
    const ended = new Promise((resolve) => this.#child.once("exit", resolve));
    this.#child.kill("SIGKILL");
    await ended;
  }

  #send(message: ToEncoder): void {
    // A process without a channel reports an "error" event.
    this.#child.send?.(message, (error) => {
      if (error !== null) this.#fail(unusable(error));
    });
  }

  /** Rejects everything that waits for this process: its start and its batches. */
  #fail(error: Error): void {
    this.#failure ??= error;
    this.#rejectReady(this.#failure);
    for (const { reject } of this.#waiting.splice(0)) reject(this.#failure);
  }
}

function forkEncoder(): ChildProcess {
  try {
    return fork(fileURLToPath(new URL("./encoder-process.js", import.meta.url)), {
      serialization: "advanced",
      execArgv: ["--expose-gc"],
      // Each process is meant to keep one core busy.
      env: { ...process.env, TOKENIZERS_PARALLELISM: "false" },
      stdio: ["ignore", "ignore", "inherit", "ipc"],
    });
  } catch (cause) {
    throw unusable(cause as Error);
  }
}

function unusable(cause: Error): DataError {
  return new DataError(
    `[prepare] cannot use a tokenizer process: ${cause.message}; the same call goes on with the work, ` +
      "with fewer workers if there are too many",
    { cause },
  );
}
