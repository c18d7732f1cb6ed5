import { type ChildProcess, fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import { DataError } from "../../core/errors.js";
import type { TokenDType } from "../../data/dataset-file.js";
import type { Tokenizer } from "../../data/tokenizer.js";
import { type EncodedBatch, type EncodeRequest, encodePieces } from "./encode.js";
import { crashOf, keepTail } from "./encoder-crash.js";
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
    encode: async (request) => {
      const least = children.reduce((a, b) => (b.underWay < a.underWay ? b : a));
      try {
        return await least.encode(request);
      } catch (error) {
        if (!(error instanceof EncoderCrash)) throw error;
        throw (await findPiece(request, folder, dtype)) ?? error;
      }
    },
    stop,
  };
}

/** A process that its own code ended, with signals such as SIGABRT. */
class EncoderCrash extends DataError {}

/** A piece of text that ends any process which encodes it. */
export class UnencodablePiece extends DataError {
  /** Index of the piece in its batch. */
  readonly piece: number;

  constructor(piece: number, reason: string) {
    super(`[prepare] the tokenizer cannot encode a text: ${reason}`);
    this.piece = piece;
  }
}

/** Encodes a batch again, piece by piece in a new process. @returns null if nothing ends that one */
async function findPiece(
  request: EncodeRequest,
  folder: string,
  dtype: TokenDType,
): Promise<UnencodablePiece | null> {
  const child = new EncoderProcess(folder, dtype);
  let piece = 0;
  try {
    await child.ready;
    for (; piece < request.ends.length; piece++) {
      if (!request.wanted[piece]) continue;
      const wanted = request.wanted.map((_, place) => (place === piece ? 1 : 0));
      await child.encode({ ...request, wanted });
    }
    return null;
  } catch (error) {
    if (!(error instanceof EncoderCrash)) throw error;
    return new UnencodablePiece(piece, crashOf(child.said));
  } finally {
    await child.stop();
  }
}

/** Signals by which a process ends itself. */
const crashSignals = new Set<string>([
  "SIGABRT",
  "SIGSEGV",
  "SIGILL",
  "SIGBUS",
  "SIGFPE",
  "SIGTRAP",
]);

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
  /** End of what the process wrote to its standard error. */
  said = "";

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
    this.#child.stderr?.on("data", (bytes: Buffer) => {
      this.said = keepTail(this.said + bytes.toString());
    });
    // Unlike "exit", "close" comes when everything that was written has been read.
    this.#child.on("close", (code, signal) => {
      const Kind = crashSignals.has(signal ?? "") ? EncoderCrash : DataError;
      const message =
        `[prepare] a tokenizer process ended with ${signal ?? code}; the same call goes on with the work, ` +
        "with fewer workers if memory ran out";
      this.#fail(new Kind(message));
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
    this.#child.removeAllListeners("close");
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
      stdio: ["ignore", "ignore", "pipe", "ipc"],
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
