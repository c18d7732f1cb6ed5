import {
  checkBoolean,
  checkFunction,
  checkInteger,
  checkNumber,
  checkObject,
  checkOptions,
} from "../core/check-values.js";
import { ArgumentError, StorageError } from "../core/errors.js";
import type { HostBatch } from "../model/batch.js";
import { ignoredTarget } from "../model/ignored-target.js";
import { maskBits } from "./dataset-file.js";
import { type DocumentMarks, documentStarts, splitWindows, type WindowRows } from "./windows.js";

/** A source of windows for a loader: a `Mixture`. */
export interface WindowSource {
  readonly sequenceLength: number;
  /** The windows at `count` positions, each T+1 ids, one after the other. */
  read(position: number, count: number): Promise<Int32Array>;
  /** Reads like `read`, with the facts about the ids of chats. Needed for chats. */
  readRows?(position: number, count: number): Promise<WindowRows>;
  /**
   * The ids that separate documents in the window at a position. Needed to keep documents apart.
   */
  marksAt?(position: number): DocumentMarks;
}

/**
 * Options that keep the documents of a window apart. By default a window is one text, as in
 * TinyLlama.
 */
export interface DocumentOptions {
  /** Whether a token attends only to its own document: batches have `firstKey`. Default: false. */
  maskDocuments?: boolean;
  /**
   * Whether positions count from the start of each document: batches have `positions`.
   * Default: false.
   */
  resetPositions?: boolean;
}

export interface LoaderOptions extends DocumentOptions {
  /** B: windows per micro-batch. */
  batchSize: number;
  /** Global position of the first micro-batch. Default: 0. */
  startPosition?: number;
  /** Micro-batches read ahead of the consumer. Default: 4. */
  prefetch?: number;
  /** This process among `worldSize` processes. Default: 0 of 1. */
  rank?: number;
  worldSize?: number;
  /** Called while `next` waits, once every `slowAfterMs` milliseconds (default: 30,000). */
  onSlow?: (waitedMs: number) => void;
  slowAfterMs?: number;
  /** Longest time that `next` waits before it fails with a StorageError. Default: no limit. */
  limitMs?: number;
}

/** A micro-batch of B rows of T ids each, and its place in the sequence of all windows. */
export interface LoadedBatch extends HostBatch {
  /** Global position of the first window of this micro-batch over all ranks. */
  position: number;
  /** Position of the next micro-batch, which a checkpoint must save. */
  nextPosition: number;
}

/**
 * Makes a batch from windows. Only this function turns ids into inputs and targets, and separates
 * documents. Chats in a window are always kept apart, and the loss counts the answers' tokens
 * alone.
 * @param windows rows of T+1 ids, plain or with what is known of them
 * @param marksOf gives the ids that separate documents in a row
 */
export function makeBatch(
  windows: Int32Array | WindowRows,
  count: number,
  sequenceLength: number,
  { maskDocuments = false, resetPositions = false }: DocumentOptions,
  marksOf: (row: number) => DocumentMarks,
): HostBatch {
  const { ids, chats }: WindowRows = windows instanceof Int32Array ? { ids: windows } : windows;
  const batch = { ...splitWindows(ids, count, sequenceLength), count };
  if (!chats && !maskDocuments && !resetPositions) return batch;
  const starts = documentStarts(ids, sequenceLength, marksOf);
  if (chats) placeChats(chats, starts, batch.targets, sequenceLength);
  const isChat = (place: number) => chats?.rows[Math.floor(place / sequenceLength)] === true;
  return {
    ...batch,
    ...((maskDocuments || chats) && {
      firstKey: starts.map((start, i) => (maskDocuments || isChat(i) ? start : 0)),
    }),
    ...((resetPositions || chats) && {
      positions: starts.map(
        (start, i) => (i % sequenceLength) - (resetPositions || isChat(i) ? start : 0),
      ),
    }),
    ...(chats?.pairs && numberAnswers(chats, batch.targets, sequenceLength)),
  };
}

/** Sets where chats begin, and which targets do not count. */
function placeChats(
  { rows, mask, starts: chatStarts }: NonNullable<WindowRows["chats"]>,
  starts: Int32Array,
  targets: Int32Array,
  sequenceLength: number,
): void {
  for (const [row, holdsChats] of rows.entries()) {
    if (!holdsChats) continue;
    for (let t = 0; t < sequenceLength; t++) {
      const place = row * sequenceLength + t;
      const id = row * (sequenceLength + 1) + t;
      starts[place] = chatStarts[id] as number;
      // The first token of a chat never counts: no token of the chat before predicts it.
      const follows = chatStarts[id + 1] === chatStarts[id];
      const counts = ((mask[id + 1] as number) & maskBits.counted) !== 0;
      if (!follows || !counts) targets[place] = ignoredTarget;
    }
  }
}

/**
 * Numbers the answers of pairs: those of pair k are 2k, the preferred one, and 2k + 1. An answer of
 * which no token counts keeps its number.
 */
function numberAnswers(
  { mask, starts }: NonNullable<WindowRows["chats"]>,
  targets: Int32Array,
  sequenceLength: number,
): Pick<HostBatch, "answers" | "pairs"> {
  const answers = new Int32Array(targets.length);
  const isRejected = (id: number) => ((mask[id] as number) & maskBits.rejected) !== 0;
  let pairs = 0;
  for (let id = 0; id < mask.length; id++) {
    const t = id % (sequenceLength + 1);
    // A pair counts where its second half begins, and the first half has the number to come.
    if (isRejected(id) && starts[id] === t) pairs++;
    if (t === sequenceLength) continue;
    const place = id - Math.floor(id / (sequenceLength + 1));
    if (targets[place] === ignoredTarget) continue;
    answers[place] = isRejected(id) ? 2 * (pairs - 1) + 1 : 2 * pairs;
  }
  return { answers, pairs };
}

export interface Shares {
  /** Windows per rank. */
  batchSize: number;
  rank: number;
  worldSize: number;
  /** Position at which step 0 starts. Default: 0. */
  startPosition?: number;
}

/**
 * The positions that a rank reads in a step. Step s covers batchSize · worldSize positions, which
 * follow those of step s-1 without a gap; rank r takes the r-th batchSize of them. The global
 * sequence therefore does not depend on the number of ranks, and a run may resume with another
 * number. An optimizer step of A micro-batches consists of A such steps. Its ranks together take
 * batchSize · worldSize · A positions without a gap; the j-th micro-batch of rank r starts at (j ·
 * worldSize + r) · batchSize.
 */
export function positionsForStep(
  step: number,
  { batchSize, rank, worldSize, startPosition = 0 }: Shares,
): { first: number; count: number } {
  const first = startPosition + step * batchSize * worldSize + rank * batchSize;
  return { first, count: batchSize };
}

const loaderOptionNames = [
  "batchSize",
  "startPosition",
  "prefetch",
  "rank",
  "worldSize",
  "maskDocuments",
  "resetPositions",
  "onSlow",
  "slowAfterMs",
  "limitMs",
];
/**
 * Limit of ids in a micro-batch: the most that one Int32Array can hold on every version of Node.js.
 */
const mostIds = 2 ** 31;
const mostPrefetched = 4096;

/**
 * Reads at most `prefetch` micro-batches ahead of the consumer. If a read fails, the `next` that
 * would have returned its micro-batch throws the error, and so does every later `next`.
 */
export class Loader {
  /** Total time that `next` has waited for storage. */
  waitedMs = 0;
  /** Total time of the main thread for finding windows and assembling micro-batches. */
  hostMs = 0;
  readonly #source: WindowSource;
  readonly #options: Required<Omit<LoaderOptions, "onSlow" | "limitMs">> &
    Pick<LoaderOptions, "onSlow" | "limitMs">;
  readonly #queue: Promise<LoadedBatch>[] = [];
  #step = 0;
  #failure: unknown = null;
  #closed = false;

  constructor(source: WindowSource, options: LoaderOptions) {
    checkObject("loader", "source", source, "a source of windows, such as a TokenDataset");
    checkFunction("loader", "source.read", source.read);
    checkObject("loader", "options", options);
    checkOptions("loader", options, loaderOptionNames);
    this.#source = source;
    this.#options = {
      startPosition: 0,
      prefetch: 4,
      rank: 0,
      worldSize: 1,
      maskDocuments: false,
      resetPositions: false,
      slowAfterMs: 30_000,
      ...options,
    };
    const { batchSize, startPosition, prefetch, rank, worldSize } = this.#options;
    checkInteger("loader", "source.sequenceLength", source.sequenceLength, { min: 1 });
    checkInteger("loader", "batchSize", batchSize, {
      min: 1,
      max: mostIds / source.sequenceLength,
    });
    checkInteger("loader", "startPosition", startPosition, { min: 0 });
    checkInteger("loader", "prefetch", prefetch, { min: 1, max: mostPrefetched });
    checkInteger("loader", "worldSize", worldSize, { min: 1 });
    checkInteger("loader", "rank", rank, { min: 0, max: worldSize - 1 });
    const { onSlow, slowAfterMs, limitMs = 1 } = this.#options;
    if (onSlow !== undefined) checkFunction("loader", "onSlow", onSlow);
    checkNumber("loader", "slowAfterMs", slowAfterMs, { min: 1, max: 2 ** 31 - 1 });
    checkNumber("loader", "limitMs", limitMs, { min: 1, max: 2 ** 31 - 1 });
    const { maskDocuments, resetPositions } = this.#options;
    checkBoolean("loader", "maskDocuments", maskDocuments);
    checkBoolean("loader", "resetPositions", resetPositions);
    if ((maskDocuments || resetPositions) && source.marksAt === undefined) {
      throw new ArgumentError("[loader] this source does not say what separates documents");
    }
    this.#fill();
  }

  /** The next micro-batch, when it has been read. @throws DataError, StorageError */
  async next(): Promise<LoadedBatch> {
    if (this.#closed) throw new ArgumentError("[loader] next() after close()");
    if (this.#failure !== null) throw this.#failure;
    const batch = this.#queue.shift() as Promise<LoadedBatch>;
    const start = performance.now();
    const { onSlow, slowAfterMs, limitMs } = this.#options;
    const timer = setInterval(() => onSlow?.(performance.now() - start), slowAfterMs);
    timer.unref();
    try {
      const loaded = await (limitMs === undefined ? batch : within(limitMs, batch));
      if (!this.#closed) this.#fill();
      return loaded;
    } catch (error) {
      this.#failure ??= error;
      throw error;
    } finally {
      clearInterval(timer);
      this.waitedMs += performance.now() - start;
    }
  }

  /**
   * Whether the storage has not answered in time. Reads are then in progress that may never end.
   */
  get hangs(): boolean {
    return this.#failure instanceof StorageError;
  }

  /** Stops reading ahead and waits for the reads in progress, unless they hang. */
  async close(): Promise<void> {
    this.#closed = true;
    const reads = this.#queue.splice(0);
    if (!this.hangs) await Promise.allSettled(reads);
  }

  #fill(): void {
    while (this.#queue.length < this.#options.prefetch) {
      const batch = this.#load(this.#step++);
      batch.catch(() => {}); // reported by next()
      this.#queue.push(batch);
    }
  }

  async #load(step: number): Promise<LoadedBatch> {
    const { batchSize, startPosition, worldSize } = this.#options;
    const { first, count } = positionsForStep(step, this.#options);
    const asked = performance.now();
    const reading = this.#source.readRows
      ? this.#source.readRows(first, count)
      : this.#source.read(first, count);
    this.hostMs += performance.now() - asked;
    const windows = await reading;
    const arrived = performance.now();
    const position = startPosition + step * batchSize * worldSize;
    const { sequenceLength } = this.#source;
    const marksOf = (row: number) => this.#source.marksAt?.(first + row) as DocumentMarks;
    const batch = {
      ...makeBatch(windows, count, sequenceLength, this.#options, marksOf),
      firstRow: first,
      position,
      nextPosition: position + batchSize * worldSize,
    };
    this.hostMs += performance.now() - arrived;
    return batch;
  }
}

async function within<T>(limitMs: number, work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      const seconds = Math.round(limitMs / 1000);
      reject(new StorageError(`[loader] no data for ${seconds} s: the storage does not answer`));
    }, limitMs);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}
