import { DataError } from "../../core/errors.js";
import {
  type DatasetFile,
  type ShardEntry,
  type Split,
  splitNames,
  type TokenDType,
} from "../../data/dataset-file.js";
import type { Tokenizer } from "../../data/tokenizer.js";
import type { FolderIdentity } from "../../files/folder-identity.js";
import type { Deduplicator } from "../deduplicator.js";
import { documentEndOf } from "../document-end.js";
import {
  type PassCheckpoint,
  type PassProgress,
  type WorkFacts,
  writeJournal,
} from "../journal.js";
import { expectUnmoved } from "../moved.js";
import type { PrepareSettings } from "../options.js";
import type { PrepareProgress } from "../prepare.js";
import type { FoundInput } from "../readers/find.js";
import type { ShardLog } from "../shard-log.js";
import type { ShardWriter } from "../shard-writer.js";
import { type AnswerSource, firstPiece, readTasks, type TextBatch } from "./batch.js";
import { type EncodedBatch, requestOf } from "./encode.js";
import { type Encoder, UnencodablePiece } from "./encoder-pool.js";
import { FileNames } from "./identity.js";
import { readInOrder } from "./reader-pool.js";
import { BatchSink, CopyFinder } from "./sink.js";

/** Time between two checkpoints, which bounds the work that a crash loses. */
const commitEveryMs = 15_000;

/** Result of one pass over the documents. */
export interface Pass {
  splits: DatasetFile["splits"];
  progress: PassProgress;
}

export interface PassOptions {
  /** Identity of the working folder: nothing is written if another folder has taken its place. */
  identity: FolderIdentity;
  work: WorkFacts;
  settings: PrepareSettings;
  found: readonly FoundInput[];
  tokenizer: Tokenizer;
  /** How records with answers become text; null for text. */
  answers: AnswerSource | null;
  dtype: TokenDType;
  encoder: Encoder;
  /** Number of reader threads; 0 reads in this thread. */
  readers: number;
  writers: Readonly<Record<Split, ShardWriter>>;
  /** Log of the finished shards. */
  log: ShardLog;
  /** Start of the pass. It is updated in place. */
  progress: PassProgress;
  /** The latest checkpoint between two files. */
  between: PassCheckpoint | null;
  deduplicator: Deduplicator | null;
  signal: AbortSignal | undefined;
  onProgress: (progress: Omit<PrepareProgress, "resumedDocuments">) => void;
}

interface UnderWay {
  batch: TextBatch;
  wanted: Uint8Array;
  /** Documents seen by the end of this batch. */
  seen: number;
  encoded: Promise<EncodedBatch>;
  /** Document that goes on in this batch, if it begins with the rest of one. */
  before: Origin | null;
}

/** Place of a document in the input. */
interface Origin {
  /** Number of the file among all files. */
  file: number;
  record: number;
}

/**
 * Runs readers, encoders and writers side by side. Batches are read in order, encoded by whichever
 * process is free, and written in order again. At most `encoder.width` + 1 batches are in flight.
 */
export async function runPass(options: PassOptions): Promise<Pass> {
  const { settings, found, encoder, progress, deduplicator, signal, answers } = options;
  const sources = found.map(({ files }, index) => ({
    input: settings.inputs[index] as PrepareSettings["inputs"][number],
    files,
  }));
  const tasks = readTasks(sources, settings, progress.position, answers);
  const around = answers && (answers.template ? noMarks : marksOf(options));
  const copies = new CopyFinder(deduplicator);
  const committer = new Committer(options);
  const queue: UnderWay[] = [];
  let before: Origin | null = null;
  const writeOne = async (): Promise<void> => {
    const next = queue.shift() as UnderWay;
    const encoded = await next.encoded.catch((error: unknown) => {
      throw named(error, next, options);
    });
    await committer.write(next, encoded);
    if (!signal?.aborted) return;
    await committer.commit();
    signal.throwIfAborted();
  };
  try {
    for await (const batch of readInOrder(tasks, options.readers, signal)) {
      const { wanted, duplicates } = await copies.find(batch);
      batch.skipped.duplicate = duplicates;
      const encoded = encoder.encode(requestOf(batch, wanted, around));
      encoded.catch(() => {}); // a rejection is reported at this batch's turn
      queue.push({ batch, wanted, seen: deduplicator?.size ?? 0, encoded, before });
      before = originIn(batch, batch.files.length - 1) ?? before;
      while (queue.length > encoder.width) await writeOne();
    }
  } catch (error) {
    // The signal may have ended the reading of a long document.
    if (signal?.aborted) await committer.commit();
    throw error;
  }
  while (queue.length > 0) await writeOne();
  const splits = {
    train: await options.writers.train.finish(),
    validation: await options.writers.validation.finish(),
  };
  return { splits, progress };
}

/** The document of a number in a batch; null if there is none. */
function originIn({ files, records }: TextBatch, document: number): Origin | null {
  if (document < 0) return null;
  return { file: files[document] as number, record: records[document] as number };
}

/** Names the document that an error of the encoder is about. */
function named(error: unknown, { batch, before }: UnderWay, { found }: PassOptions): unknown {
  if (!(error instanceof UnencodablePiece)) return error;
  const begun = batch.flags
    .subarray(0, error.piece + 1)
    .reduce((count, flags) => count + (flags & firstPiece), 0);
  const origin = originIn(batch, begun - 1) ?? before;
  if (origin === null) return error;
  const file = found.flatMap(({ files }) => files)[origin.file];
  if (file === undefined) return error;
  const place = file.format === "text" ? file.path : `${file.path}, record ${origin.record}`;
  const problem = error.message.replace("[prepare] ", "").replace("a text", "this text");
  return new DataError(`[prepare] ${place}: ${problem}`, { cause: error });
}

/** The template alone decides which tokens stand around what it writes. */
const noMarks = { start: [], end: [] };

/** Ids around a document, or around each answer of plain text. */
function marksOf({ settings, tokenizer }: PassOptions): { start: number[]; end: number[] } {
  const { id: endId } = documentEndOf(settings.documentEnd, tokenizer);
  return {
    start: settings.documentStart === "bos" ? [tokenizer.bosId as number] : [],
    end: endId === null ? [] : [endId],
  };
}

/** Writes batches and takes a checkpoint from time to time. */
class Committer {
  readonly #options: PassOptions;
  readonly #sink: BatchSink;
  readonly #starts: number[];
  readonly #totalBytes: number;
  #committedAt = performance.now();
  #atBoundary = true;
  readonly #names: FileNames;
  #between: PassCheckpoint | null;
  /** Number of shards already in the log. */
  readonly #noted: Record<Split, number>;

  constructor(options: PassOptions) {
    this.#options = options;
    const { settings, writers, progress, dtype, answers } = options;
    // The tokens around answers are among the answers' ids.
    const marks = answers ? noMarks : marksOf(options);
    this.#sink = new BatchSink(writers, progress, settings.inputs, dtype, marks);
    let total = 0;
    this.#starts = options.found.flatMap(({ files }) =>
      files.map(({ bytes }) => {
        const start = total;
        total += bytes;
        return start;
      }),
    );
    this.#totalBytes = total;
    this.#names = new FileNames(options.found);
    this.#between = options.between;
    this.#noted = {
      train: writers.train.shards.length,
      validation: writers.validation.shards.length,
    };
  }

  async write({ batch, wanted, seen }: UnderWay, encoded: EncodedBatch): Promise<void> {
    const { progress, onProgress } = this.#options;
    await this.#sink.write(batch, encoded, wanted);
    this.#atBoundary = batch.next !== null;
    if (batch.next !== null) {
      progress.position = batch.next;
      progress.seen = seen;
      if (batch.next.record === 0) this.#between = this.#checkpoint();
    }
    const sum = (field: "documents" | "bytes" | "tokens"): number =>
      progress.sources.reduce((total, source) => total + source[field], 0);
    onProgress({
      documents: sum("documents"),
      bytes: (this.#starts[batch.at.file] ?? 0) + batch.at.consumed,
      totalBytes: this.#totalBytes,
      textBytes: sum("bytes"),
      tokens: sum("tokens"),
    });
    const due = performance.now() - this.#committedAt >= commitEveryMs;
    if (due || splitNames.some((split) => this.#newShards(split).length > 0)) await this.commit();
  }

  /** Makes everything so far durable, unless a document is half written. */
  async commit(): Promise<void> {
    if (!this.#atBoundary) return;
    const { writers, deduplicator, identity, work, log } = this.#options;
    for (const split of splitNames) {
      await writers[split].sync();
      await log.add(this.#newShards(split));
      this.#noted[split] = writers[split].shards.length;
    }
    await deduplicator?.sync();
    const latest = this.#checkpoint();
    const checkpoints = [latest];
    if (this.#between !== null && this.#between.read !== latest.read) {
      checkpoints.push(this.#between);
    }
    await expectUnmoved(identity);
    await writeJournal(identity.root, { ...work, checkpoints });
    this.#committedAt = performance.now();
  }

  #newShards(split: Split): readonly ShardEntry[] {
    return this.#options.writers[split].shards.slice(this.#noted[split]);
  }

  /**
   * PassCheckpoint of the current position. The journal may name it once everything so far is durable.
   */
  #checkpoint(): PassCheckpoint {
    const { writers, progress } = this.#options;
    return structuredClone({
      ...progress,
      read: this.#names.upTo(progress.position),
      writers: { train: writers.train.state, validation: writers.validation.state },
    });
  }
}
