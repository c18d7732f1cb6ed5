import { type Piece, pieces, selectionOf } from "../readers/documents.js";
import type { FilePosition, Input, InputFile, ReaderOptions, Skipped } from "../readers/input.js";
import { noneSkipped } from "../readers/input.js";

/** Text per batch: enough that handing it over costs nothing, little enough that many fit into memory. */
export const batchBytes = 2 ** 20;
const batchPieces = 8192;
/** A piece's UTF-16 units are at most three bytes each. */
const roomBytes = batchBytes + 3 * 2 ** 17;

/** A place in all the files of a preparation, between two documents. */
export interface Position extends FilePosition {
  file: number;
}

/** Consecutive files of one input, read by one thread. */
export interface ReadTask {
  source: number;
  input: Input;
  options: ReaderOptions;
  files: InputFile[];
  /** Number of the first one among all files. */
  firstFile: number;
  /** Where to start in the first one. */
  from: FilePosition;
}

/** Pieces of documents of one input, in order. Its arrays are moved between threads, not copied. */
export interface TextBatch {
  source: number;
  /** UTF-8 of all pieces. */
  text: Uint8Array;
  /** Where each piece ends in `text`. */
  ends: Uint32Array;
  /** Of each piece: 1 it is the first of its document, 2 the last. */
  flags: Uint8Array;
  /** Of each document that starts here: 16 bytes of hash; its bytes, file and record. */
  hashes: Uint8Array;
  sizes: Float64Array;
  files: Uint32Array;
  records: Float64Array;
  skipped: Skipped;
  /** Where reading can go on behind this batch; null within a document. */
  next: Position | null;
  /** Bytes of the last file that have been read. */
  at: { file: number; consumed: number };
}

export const firstPiece = 1;
export const lastPiece = 2;

/** Reads the files of a task as batches. The last one may be without text. */
export async function* readBatches(task: ReadTask): AsyncGenerator<TextBatch> {
  const selection = selectionOf(task.input);
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
    // The file is done, whatever was left out behind its last document.
    builder.finishFile(number, file.bytes);
  }
  yield builder.build();
}

class BatchBuilder {
  /** Counts what was left out since the last batch. */
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

/** What of a batch is moved to another thread. */
export function buffersOf(batch: TextBatch): ArrayBuffer[] {
  const { text, ends, flags, hashes, sizes, files, records } = batch;
  return [text, ends, flags, hashes, sizes, files, records].map((a) => a.buffer as ArrayBuffer);
}

/** Files of one input in groups that one thread reads: a million small files are not a million messages. */
export function* readTasks(
  sources: readonly { input: Input; files: readonly InputFile[] }[],
  options: ReaderOptions,
  from: Position,
): Generator<ReadTask> {
  let number = 0;
  for (const [source, { input, files }] of sources.entries()) {
    let group: InputFile[] = [];
    let bytes = 0;
    let firstFile = number;
    const task = (): ReadTask => {
      const start = firstFile === from.file ? from : { record: 0, byte: 0 };
      return { source, input, options, files: group, firstFile, from: start };
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
