import type { ChatSource } from "../../generate/chat-template.js";
import { type AnswerWriting, type Piece, pieces, selectionOf } from "../readers/documents.js";
import type { FilePosition, Input, InputFile, ReaderOptions, Skipped } from "../readers/input.js";
import { noneSkipped } from "../readers/input.js";

/**
 * Bytes of text per batch: large enough that the hand-over costs nothing, small enough that many
 * fit into memory.
 */
export const batchBytes = 2 ** 20;
const batchPieces = 8192;
/** Room for a batch and one more piece, whose UTF-16 units take at most three bytes each. */
const roomBytes = batchBytes + 3 * 2 ** 17;

/** A position in the sequence of all input files, between two documents. */
export interface Position extends FilePosition {
  file: number;
}

/** How records with answers become text. */
export interface AnswerSource {
  /** Whether a record holds two answers of which one is preferred, and not a chat. */
  pairs: boolean;
  /** Template that writes messages; null for pairs of plain text. */
  template: ChatSource | null;
}

/** Consecutive files of one input, read by one thread. */
export interface ReadTask {
  source: number;
  input: Input;
  options: ReaderOptions;
  /** How records with answers become text; null for text. */
  answers: AnswerSource | null;
  files: InputFile[];
  /** Number of the task's first file among all files. */
  firstFile: number;
  /** Position to start from in the first file. */
  from: FilePosition;
}

/** Pieces of documents of one input, in order. Its arrays are moved between threads, not copied. */
export interface TextBatch {
  source: number;
  /** UTF-8 of all pieces. */
  text: Uint8Array;
  /** End of each piece in `text`. */
  ends: Uint32Array;
  /** Flags of each piece: 1 for the first of its document, 2 for the last. */
  flags: Uint8Array;
  /**
   * For each document that starts in this batch: a 16-byte hash, its UTF-8 bytes, file and record.
   */
  hashes: Uint8Array;
  sizes: Float64Array;
  files: Uint32Array;
  records: Float64Array;
  skipped: Skipped;
  /** Position from which reading can resume after this batch; null inside a document. */
  next: Position | null;
  /** Progress: the latest file and how many of its stored bytes have been read. */
  at: { file: number; consumed: number };
}

export const firstPiece = 1;
export const lastPiece = 2;

/** Reads the files of a task as batches. The last batch may contain no text. */
export async function* readBatches(task: ReadTask): AsyncGenerator<TextBatch> {
  const selection = selectionOf(task.input, task.answers && (await writingOf(task.answers)));
  const builder = new BatchBuilder(task.source);
  for (const [place, file] of task.files.entries()) {
    const number = task.firstFile + place;
    const from = place === 0 ? task.from : { record: 0, byte: 0 };
    for await (const piece of pieces(file, from, selection, task.options, builder.skipped)) {
      builder.add(piece, number);
      if (!builder.isFull) continue;
      yield builder.build();
      builder.reset();
    }
    // The file counts as done even if documents after the last accepted one were skipped.
    builder.finishFile(number, file.bytes);
  }
  yield builder.build();
}

/** Most preparations are of text, and need not load the templates. */
async function writingOf({ pairs, template }: AnswerSource): Promise<AnswerWriting> {
  if (template === null) return { pairs, template };
  const { TrainingTemplate } = await import("../../generate/training-chat.js");
  return { pairs, template: new TrainingTemplate(template) };
}

class BatchBuilder {
  /** Counts of the documents skipped since the last batch. */
  readonly skipped = noneSkipped();
  readonly #source: number;
  #text = Buffer.allocUnsafeSlow(roomBytes);
  #length = 0;
  #ends: number[] = [];
  #flags: number[] = [];
  #hashes: Uint8Array[] = [];
  #sizes: number[] = [];
  #files: number[] = [];
  #records: number[] = [];
  #next: Position | null = null;
  #at = { file: 0, consumed: 0 };

  constructor(source: number) {
    this.#source = source;
  }

  get isFull(): boolean {
    return this.#length >= batchBytes || this.#ends.length >= batchPieces;
  }

  add({ text, start, next, consumed }: Piece, file: number): void {
    // Only a text with answers may be longer than the room for one more piece.
    const needed = this.#length + 3 * text.length;
    if (needed > this.#text.length) {
      this.#text = Buffer.concat([this.#text.subarray(0, this.#length)], needed);
    }
    this.#length += this.#text.write(text, this.#length, "utf8");
    this.#ends.push(this.#length);
    this.#flags.push((start ? firstPiece : 0) | (next ? lastPiece : 0));
    if (start) {
      this.#hashes.push(start.hash);
      this.#sizes.push(start.bytes);
      this.#files.push(file);
      this.#records.push(start.record);
    }
    this.#next = next && { file, ...next };
    this.#at = { file, consumed };
  }

  finishFile(file: number, bytes: number): void {
    this.#next = { file: file + 1, record: 0, byte: 0 };
    this.#at = { file, consumed: bytes };
  }

  build(): TextBatch {
    const hashes = new Uint8Array(this.#hashes.length * 16);
    for (const [place, hash] of this.#hashes.entries()) hashes.set(hash, place * 16);
    const text = new Uint8Array(this.#length);
    text.set(this.#text.subarray(0, this.#length));
    return {
      source: this.#source,
      text,
      ends: Uint32Array.from(this.#ends),
      flags: Uint8Array.from(this.#flags),
      hashes,
      sizes: Float64Array.from(this.#sizes),
      files: Uint32Array.from(this.#files),
      records: Float64Array.from(this.#records),
      skipped: { ...this.skipped },
      next: this.#next,
      at: this.#at,
    };
  }

  reset(): void {
    Object.assign(this.skipped, noneSkipped());
    this.#length = 0;
    for (const list of [this.#ends, this.#flags, this.#sizes, this.#files, this.#records]) {
      list.length = 0;
    }
    this.#hashes = [];
  }
}

/** The buffers of a batch that move to another thread instead of being copied. */
export function buffersOf(batch: TextBatch): ArrayBuffer[] {
  const { text, ends, flags, hashes, sizes, files, records } = batch;
  return [text, ends, flags, hashes, sizes, files, records].map((a) => a.buffer as ArrayBuffer);
}

/**
 * Groups the files of one input into tasks for one thread each: a million small files should not be
 * a million messages.
 */
export function* readTasks(
  sources: readonly { input: Input; files: readonly InputFile[] }[],
  options: ReaderOptions,
  from: Position,
  answers: AnswerSource | null,
): Generator<ReadTask> {
  let number = 0;
  for (const [source, { input, files }] of sources.entries()) {
    let group: InputFile[] = [];
    let bytes = 0;
    let firstFile = number;
    const task = (): ReadTask => {
      const start = firstFile === from.file ? from : { record: 0, byte: 0 };
      return { source, input, options, answers, files: group, firstFile, from: start };
    };
    for (const file of files) {
      if (number++ < from.file) {
        firstFile = number;
        continue;
      }
      group.push(file);
      bytes += file.bytes;
      if (bytes < 2 ** 24 && group.length < 512) continue;
      yield task();
      group = [];
      bytes = 0;
      firstFile = number;
    }
    if (group.length > 0) yield task();
  }
}
