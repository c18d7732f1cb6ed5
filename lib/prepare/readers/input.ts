import type { InvalidUtf8 } from "./utf8.js";

export type { Input } from "../schema.js";

/** How a file is read: whole, or record by record. */
export type Format = "text" | "jsonl" | "parquet";

/** Which files of a folder are read. */
export const inputKinds = ["auto", "text", "code", "records"] as const;
export type InputKind = (typeof inputKinds)[number];

/** How documents are taken from files; the same for all inputs. */
export interface ReadOptions {
  /** Bytes that are no UTF-8: refuse the file, or put U+FFFD in their place. */
  invalidUtf8: InvalidUtf8;
  /** A record that is no JSON object or has no text: refuse the file, or leave it out and count it. */
  badRecords: "error" | "skip";
}

/** A file to read. */
export interface InputFile {
  path: string;
  /** As stored. */
  bytes: number;
  mtimeMs: number;
  format: Format;
  compression: "none" | "gzip" | "zstd";
}

/** A place between two records of a file. */
export interface FilePosition {
  /** Records before it. */
  record: number;
  /** Where it is in the file, if the format can go on from there; else 0. */
  byte: number;
}

/** A record with its text. */
export interface RawDocument {
  record: number;
  /** The text, or for a large file what reads it piece by piece. */
  text: string | TextStreamer;
  /** The record's fields, for the filter. */
  fields: unknown;
  next: FilePosition;
  /** Bytes of the file, as stored, that have been read when this record is done. */
  consumed: number;
}

/** Text that is too long for one string. */
export interface TextStreamer {
  /** UTF-8 bytes of the text. */
  bytes: number;
  sha256: Uint8Array;
  chunks(): AsyncIterable<string>;
}

/** What was left out, and why. */
export interface Skipped {
  empty: number;
  filtered: number;
  short: number;
  long: number;
  bad: number;
  duplicate: number;
  /** Records that hold NaN or an infinity; they are not left out, but read with null in that place. */
  nonFinite: number;
}

export function noneSkipped(): Skipped {
  return { empty: 0, filtered: 0, short: 0, long: 0, bad: 0, duplicate: 0, nonFinite: 0 };
}
