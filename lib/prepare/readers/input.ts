import type { InvalidUtf8 } from "./utf8.js";

/** How a file is read: whole, or record by record. */
export type Format = "text" | "jsonl" | "parquet";

/** Which files of a folder are read. */
export const inputKinds = ["auto", "text", "code", "records"] as const;
export type InputKind = (typeof inputKinds)[number];

/** A source of documents. A plain string is short for `{ path }`. */
export interface Input {
  /** A file, a folder, or a pattern (`*` `?` `**` `[a-z]` `{a,b}`). */
  path: string;
  /**
   * Selects the files of a folder:
   * - `text`: .txt and .md
   * - `code`: source files, by extension
   * - `records`: .jsonl, .json (one object a line) and .parquet, the JSON ones also as .gz and .zst
   * - `auto` (default): records if the folder holds .jsonl, .parquet or compressed .json, as a
   *   Hugging Face data set does, or if it holds .json and no text but a README; otherwise text
   */
  kind?: InputKind;
  /** Only these languages; for kind "code" alone. Default: all of `languages`. */
  languages?: readonly string[];
  /** Names of folders not to enter. Default: `excludedFolders` for code, none for others. */
  exclude?: readonly string[];
  /**
   * Field of a record that holds the text, with dots for nested fields. Default: "text", or
   * "content" if that is there.
   */
  textField?: string;
  /** Keeps only records that match this condition; see `parseFilter`. */
  filter?: string;
  /** Drops documents with fewer or more UTF-8 bytes. */
  minBytes?: number;
  maxBytes?: number;
  /**
   * Split of a data set whose file names tell splits apart, such as
   * `data/train-00000-of-00010.parquet` or `validation/*.jsonl.zst`; "all" takes every file.
   * Default: for records, "train" if the names tell splits apart; for text and code, every file.
   */
  split?: "train" | "validation" | "test" | "all";
  /**
   * Split of the documents, whatever their hash: for data that comes with its own validation split.
   */
  to?: "train" | "validation";
}

/** How documents are taken from files. These options apply to all inputs. */
export interface ReaderOptions {
  /** Bytes that are not valid UTF-8: refuse the file, or replace them with U+FFFD. */
  invalidUtf8: InvalidUtf8;
  /** Records that are not JSON objects or have no text: refuse the file, or skip and count them. */
  badRecords: "error" | "skip";
}

/** A file to read. */
export interface InputFile {
  path: string;
  /** Size as stored. */
  bytes: number;
  mtimeMs: number;
  format: Format;
  compression: "none" | "gzip" | "zstd";
}

/** A place between two records of a file. */
export interface FilePosition {
  /** Number of records before it. */
  record: number;
  /** Byte offset of the position, if the format can resume there; otherwise 0. */
  byte: number;
}

/** A record with its text. */
export interface RawDocument {
  record: number;
  /** The text, or for a large file a streamer that reads it piece by piece. */
  text: string | TextStreamer;
  /** The record's fields, for the filter. */
  fields: unknown;
  next: FilePosition;
  /** Stored bytes of the file that have been read at the end of this record. */
  consumed: number;
}

/** Text that is too long for one string. */
export interface TextStreamer {
  /** UTF-8 bytes of the text. */
  bytes: number;
  sha256: Uint8Array;
  chunks(): AsyncIterable<string>;
}

/** Numbers of skipped documents, by reason. */
export interface Skipped {
  empty: number;
  filtered: number;
  short: number;
  long: number;
  bad: number;
  duplicate: number;
  /**
   * Records that hold NaN or an infinity. They are not skipped, but read with null in its place.
   */
  nonFinite: number;
}

export function noneSkipped(): Skipped {
  return { empty: 0, filtered: 0, short: 0, long: 0, bad: 0, duplicate: 0, nonFinite: 0 };
}
