import type { Split, TokenDType } from "../../data/dataset-file.js";
import type { Deduplicator } from "../deduplicator.js";
import type { PassProgress } from "../journal.js";
import type { Input, Skipped } from "../readers/input.js";
import { idsOf, type ShardWriter, type StoredIds } from "../shard-writer.js";
import { hashFraction } from "../validation-split.js";
import { firstPiece, lastPiece, type TextBatch } from "./batch.js";
import type { EncodedBatch } from "./encode.js";

const longestDocuments = 5;

/** Writes encoded batches into the shards, in order, and counts documents and tokens. */
export class BatchSink {
  readonly #writers: Readonly<Record<Split, ShardWriter>>;
  readonly #progress: PassProgress;
  readonly #inputs: readonly Input[];
  readonly #dtype: TokenDType;
  readonly #start: StoredIds;
  readonly #end: StoredIds;
  /** Split of the current document. */
  #split: Split = "train";
  #tokens = 0;
  #document = { file: 0, record: 0, bytes: 0 };

  /** @param marks ids to put before and after every document */
  constructor(
    writers: Readonly<Record<Split, ShardWriter>>,
    progress: PassProgress,
    inputs: readonly Input[],
    dtype: TokenDType,
    marks: { start: readonly number[]; end: readonly number[] },
  ) {
    this.#writers = writers;
    this.#progress = progress;
    this.#inputs = inputs;
    this.#dtype = dtype;
    const stored = (ids: readonly number[]): StoredIds =>
      dtype === "uint16" ? Uint16Array.from(ids) : Uint32Array.from(ids);
    this.#start = stored(marks.start);
    this.#end = stored(marks.end);
  }

  /** @param wanted for each piece, whether its document was kept (it is not a copy) */
  async write(
    batch: TextBatch,
    { ids, counts, counted }: EncodedBatch,
    wanted: Uint8Array,
  ): Promise<void> {
    const stored = idsOf(ids, this.#dtype);
    let at = 0;
    let document = 0;
    for (const [place, flags] of batch.flags.entries()) {
      const first = (flags & firstPiece) !== 0;
      const number = first ? document++ : -1;
      if (wanted[place] === 0) continue;
      if (first) await this.#begin(batch, number);
      const count = counts[place] as number;
      await this.#append(stored.subarray(at, at + count), counted?.subarray(at, at + count));
      at += count;
      if ((flags & lastPiece) !== 0) await this.#finish(batch.source);
    }
    const { skipped } = this.#source(batch.source);
    for (const reason of Object.keys(batch.skipped) as (keyof Skipped)[]) {
      // Work begun by an earlier version may lack this reason.
      skipped[reason] = (skipped[reason] ?? 0) + batch.skipped[reason];
    }
  }

  async #begin(batch: TextBatch, number: number): Promise<void> {
    const progress = this.#progress;
    const { to } = this.#inputs[batch.source] as Input;
    if (to === undefined) {
      const hash = hashFraction(batch.hashes, number * 16);
      progress.lowestHash = Math.min(progress.lowestHash, hash);
      progress.highestHash = Math.max(progress.highestHash, hash);
      this.#split = hash < progress.threshold ? "validation" : "train";
    } else this.#split = to;
    const bytes = batch.sizes[number] as number;
    this.#document = {
      file: batch.files[number] as number,
      record: batch.records[number] as number,
      bytes,
    };
    this.#tokens = 0;
    await this.#writers[this.#split].begin(bytes);
    await this.#append(this.#start);
  }

  async #append(ids: StoredIds, counted?: Uint8Array): Promise<void> {
    this.#tokens += ids.length;
    await this.#writers[this.#split].append(ids, counted);
  }

  async #finish(source: number): Promise<void> {
    await this.#append(this.#end);
    await this.#writers[this.#split].end();
    const counts = this.#source(source);
    counts.documents++;
    counts.bytes += this.#document.bytes;
    counts.tokens += this.#tokens;
    const { longest } = this.#progress;
    const shortest = longest.at(-1);
    if (longest.length < longestDocuments || this.#tokens > (shortest?.tokens ?? 0)) {
      longest.push({ ...this.#document, tokens: this.#tokens });
      longest.sort((a, b) => b.tokens - a.tokens || a.file - b.file || a.record - b.record);
      longest.length = Math.min(longest.length, longestDocuments);
    }
  }

  #source(number: number): PassProgress["sources"][number] {
    return this.#progress.sources[number] as PassProgress["sources"][number];
  }
}

/** Finds the pieces of a batch that belong to new documents, and counts the copies. */
export class CopyFinder {
  readonly #deduplicator: Deduplicator | null;
  /** Whether the document that began in an earlier batch is kept. */
  #wanted = true;

  constructor(deduplicator: Deduplicator | null) {
    this.#deduplicator = deduplicator;
  }

  async find({ flags, hashes }: TextBatch): Promise<{ wanted: Uint8Array; duplicates: number }> {
    const wanted = new Uint8Array(flags.length).fill(1);
    if (this.#deduplicator === null) return { wanted, duplicates: 0 };
    let document = 0;
    let duplicates = 0;
    for (const [place, flag] of flags.entries()) {
      if ((flag & firstPiece) !== 0) {
        this.#wanted = await this.#deduplicator.isNew(hashes, document++ * 16);
        if (!this.#wanted) duplicates++;
      }
      wanted[place] = this.#wanted ? 1 : 0;
    }
    return { wanted, duplicates };
  }
}
