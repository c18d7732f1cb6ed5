import type { InvalidUtf8 } from "./utf8.js";

export type { Input } from "../schema.js";

/** How a file is read: whole, or record by record. */
export type Format = "text" | "jsonl" | "parquet";

/** Which files of a folder are read. */
export const inputKinds = ["auto", "text", "code", "records", "chat", "preference"] as const;
export type InputKind = (typeof inputKinds)[number];
/** Content that an input was found to hold. */
export type FoundKind = Exclude<InputKind, "auto">;

/** Whether records of this kind have answers, which alone the loss counts. */
export const hasAnswers = (kind: InputKind | undefined): boolean =>
  kind === "chat" || kind === "preference";

/** How documents are taken from files. These options apply to all inputs. */
export interface ReaderOptions {
  /** Bytes that are not valid UTF-8: refuse the file, or replace them with U+FFFD. */
  invalidUtf8: InvalidUtf8;
  /** Records that are not JSON objects or have no text: refuse the file, or skip and count them. */
  badRecords: "error" | "skip";
  /** Ends the reading, also in the middle of a document. */
  signal?: AbortSignal | undefined;
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
