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
import { type DocumentMarks, documentStarts, splitWindows } from "./windows.js";

/** Where a loader reads windows from: a `Mixture`. */
export interface WindowSource {
  readonly sequenceLength: number;
  /** The windows at `count` positions, each T+1 ids, one after the other. */
  read(position: number, count: number): Promise<Int32Array>;
  /** What separates documents in the window at a position; needed to keep them apart. */
  marksAt?(position: number): DocumentMarks;
}

/** How the documents of a window are kept apart; by default a window is one text, as TinyLlama has it. */
export interface DocumentOptions {
  /** Whether a token sees its own document only: batches have `firstKey`. Default: false. */
  maskDocuments?: boolean;
  /** Whether positions count from the start of each document: batches have `positions`. Default: false. */
  resetPositions?: boolean;
}

export interface LoaderOptions extends DocumentOptions {
  /** B: windows of a micro-batch. */
  batchSize: number;
  /** Global position of the first micro-batch. Default: 0. */
  startPosition?: number;
  /** Micro-batches read ahead of the consumer. Default: 4. */
  prefetch?: number;
  /** Default: 0 of 1. */
  rank?: number;
  worldSize?: number;
  /** Called while `next` waits for longer than `slowAfterMs` (default: 30 s), each time that has passed again. */
  onSlow?: (waitedMs: number) => void;
  slowAfterMs?: number;
  /** Longest that `next` waits before it fails with a StorageError. Default: as long as it takes. */
  limitMs?: number;
}

/** A micro-batch of B rows of T ids each, and its place in the sequence of all windows. */
export interface LoadedBatch extends HostBatch {
  /** Global position of the first window of this micro-batch over all ranks. */
  position: number;
  /** Where the next one starts: what a checkpoint has to remember. */
  nextPosition: number;
}

/**
 * Makes a batch of windows: the only place where ids become inputs and targets and documents are told apart.
 * @param windows rows of T+1 ids
 * @param marksOf of a row: what separates documents there
 */
export function makeBatch(
  windows: Int32Array,
  count: number,
  sequenceLength: number,
  { maskDocuments = false, resetPositions = false }: DocumentOptions,
  marksOf: (row: number) => DocumentMarks,
): HostBatch {
  const batch = { ...splitWindows(windows, count, sequenceLength), count };
  if (!maskDocuments && !resetPositions) return batch;
  const starts = documentStarts(windows, sequenceLength, marksOf);
  return {
    ...batch,
    ...(maskDocuments && { firstKey: starts }),
    ...(resetPositions && { positions: starts.map((start, i) => (i % sequenceLength) - start) }),
  };
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
 * The positions that a rank takes in a step: of the batchSize · worldSize positions of step s, which follow those of
 * step s-1 without a gap, rank r takes the r-th batchSize. So the global sequence does not depend on the number
 * of ranks, and a run may go on with another. An optimizer step of A micro-batches is A such steps: its ranks together
 * take batchSize · worldSize · A positions without a gap, rank r's j-th micro-batch those from
 * (j · worldSize + r) · batchSize on.
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
/** Of a micro-batch: what one Int32Array can hold on every version of Node.js. */
const mostIds = 2 ** 31;
const mostPrefetched = 4096;

/**
 * Reads micro-batches ahead of the consumer, at most `prefetch` of them. An error of a read surfaces at the `next` that
 * would have returned its micro-batch, and at every later one.
 */
export class Loader {
  /** Time that `next` has waited for storage, in all. */
  waitedMs = 0;
  /** Time of the main thread to find windows and to put micro-batches together, in all. */
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

  /** Whether the storage has not answered in time: then reads are under way that may never end. */
  get hangs(): boolean {
    return this.#failure instanceof StorageError;
  }

  /** Stops reading ahead, and waits for the reads under way unless they hang. */
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
    const reading = this.#source.read(first, count);
    this.hostMs += performance.now() - asked;
    const windows = await reading;
    const arrived = performance.now();
    const position = startPosition + step * batchSize * worldSize;
    const { sequenceLength } = this.#source;
    const marksOf = (row: number) => this.#source.marksAt?.(first + row) as DocumentMarks;
    const batch = {
      ...makeBatch(windows, count, sequenceLength, this.#options, marksOf),
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
