import type { z } from "zod";
import {
  belowOne,
  choice,
  flag,
  integer,
  type OptionsSchema,
  path,
  real,
  section,
  text,
  texts,
} from "../core/option-kinds.js";
import { inputKinds } from "./readers/input.js";

// The only list of the options of `prepare`. The function's checks and types, the YAML of configs/data/, the flags of the
// command line with their help, and the tables of docs/data.md derive from it. A doc comment here is that of the type.

const bytes = (description: string) => integer(0, Number.MAX_SAFE_INTEGER, description);

const inputOptions = {
  /** A file, a folder, or a pattern (`*` `?` `**` `[a-z]` `{a,b}`). */
  path: path("a file, a folder or a pattern"),
  /**
   * Which files of a folder: `text` for .txt and .md; `code` for source files by extension; `records` for .jsonl, .json
   * (one object a line) and .parquet, also as .gz and .zst; `auto` for records if the folder holds .jsonl, .parquet or
   * compressed .json, as a Hugging Face data set does, or .json and no text but a README; else text. Default: `auto`.
   */
  kind: choice(
    inputKinds,
    "files to take from folders: .txt and .md, source code, or jsonl and parquet",
    {
      value: "kind",
      standard: "records, unless a folder holds text and no records but plain .json",
    },
  ).optional(),
  /** Only these languages; for kind "code" alone. Default: all of `languages`. */
  languages: texts("a list of languages", "of source code, only this language", {
    value: "name",
    standard: "all",
  }).optional(),
  /** Of records, the field with the text, with dots for nested fields. Default: "text", or "content" if that is there. */
  textField: text(/[\s\S]/, "the name of a field", "field of a record with its text", {
    value: "path",
    standard: "text or content",
  }).optional(),
  /** Keeps only records that fulfil this condition; see `parseFilter`. Default: all. */
  filter: text(/[\s\S]/, "a condition", "keep records like: meta.lang == 'en' and stars >= 10", {
    value: "expression",
  }).optional(),
  /** Drops documents with fewer UTF-8 bytes. Default: those of none. */
  minBytes: bytes("drop shorter documents").optional(),
  /** Drops documents with more UTF-8 bytes. Default: none. */
  maxBytes: integer(1, Number.MAX_SAFE_INTEGER, "drop longer documents").optional(),
  /**
   * Which split of a data set in files such as `data/train-00000-of-00010.parquet` or `validation/*.jsonl.zst`; "all"
   * takes every file. Default: for records, "train" if the files tell splits apart; for text and code, every file.
   */
  split: choice(["train", "validation", "test", "all"], "split to read, by the names of files", {
    standard: "of records, train if there are any",
  }).optional(),
  /** Names of folders not to enter. Default: `excludedFolders` for code, none for others. */
  exclude: texts("a list of folders' names", "folders not to enter", {
    standard: "of code, node_modules and the like",
  }).optional(),
  /** Where its documents go whatever their hash: for data that comes with its own validation split. Default: by hash. */
  to: choice(["train", "validation"], "side that its documents go to, whatever their hash", {
    standard: "by hash",
  }).optional(),
};

export const inputSchema: OptionsSchema<typeof inputOptions> = section(
  "what to read",
  inputOptions,
);

/** What to read. A plain string is `{ path }`. */
export interface Input extends z.input<typeof inputSchema> {}

const prepareOptions = {
  /** Folder of the data set: made whole or not at all; a data set that is there is replaced. */
  out: path("data set to make; one that is there is replaced", { value: "folder" }),
  /** The path of a tokenizer. */
  tokenizer: path("a tokenizer.json or a folder with one"),
  /** Leave out documents that have been there before, byte for byte. Default: false. */
  deduplicate: flag("drop documents that have been there before, byte for byte").default(false),
  /** Share of the documents to hold out for validation. Default: 0.05, or 0 if an input goes there anyway. */
  validationFraction: belowOne("share of documents to hold out", {
    standard: "0.05, or 0 if an input goes to validation",
  }).optional(),
  /** A shard ends with the first document that brings it to this many tokens. Default: 134217728, 256 MiB. */
  shardTokens: integer(1, Number.MAX_SAFE_INTEGER, "tokens per shard").default(2 ** 27),
  /** Refuse a shard if more of it stands in runs of one token. Default: 0.1. */
  maxRunShare: real(0, 1, "refuse repetitive shards beyond this").default(0.1),
  /** What stands in front of each document. Default: "none". */
  documentStart: choice(["none", "bos"], "in front of each document", {
    value: "what",
  }).default("none"),
  /** What stands behind each document. Default: "eos". */
  documentEnd: choice(["none", "eos"], "behind each document", { value: "what" }).default("eos"),
  /** Bytes that are no UTF-8: refuse the file, or put U+FFFD in their place. Default: "error". */
  invalidUtf8: choice(["error", "replace"], "bytes that are no UTF-8: refuse, or put U+FFFD in", {
    value: "how",
  }).default("error"),
  /** Records that are no JSON objects or have no text: refuse the file, or leave them out. Default: "error". */
  badRecords: choice(
    ["error", "skip"],
    "records that are no JSON or have no text: refuse, or leave out",
    { value: "how" },
  ).default("error"),
  /** Leave out files and folders that cannot be read, and say which. Default: false, an error. */
  skipUnreadable: flag("leave out files that cannot be read, and say which").default(false),
  /**
   * Processes that encode; 0: none, encode here. The bytes are the same. Default: one per core, or 0 for less than 4 MB.
   */
  workers: integer(0, 1024, "processes that encode", { standard: "one per core" }).optional(),
  /** Discard unfinished work that this call cannot go on with, because options or files differ. Default: false, an error. */
  startOver: flag("discard unfinished work that differs in options or files").default(false),
  /** Replace what is in `out` even if it is no data set. Default: false, an error. */
  overwrite: flag("replace the output folder even if it is no data set").default(false),
};

export const prepareSchema: OptionsSchema<typeof prepareOptions> = section(
  "what is made of the inputs",
  prepareOptions,
);
