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

// The only list of the options of `prepare`. It gives the function's checks and types, the YAML of
// configs/data/, the command line's flags and help, and the tables of docs/data.md. Its doc
// comments are those of the types.

const bytes = (description: string) => integer(0, Number.MAX_SAFE_INTEGER, description);

const inputOptions = {
  /** A file, a folder, or a pattern (`*` `?` `**` `[a-z]` `{a,b}`). */
  path: path("a file, a folder or a pattern"),
  /**
   * Kind of files to read from a folder: `text` for .txt and .md; `code` for source files by
   * extension; `records` for .jsonl, .json (one object per line) and .parquet, also as .gz and
   * .zst; `chat` for records that hold chats, which the model's template writes; `preference` for
   * records with a prompt and two answers, chosen and rejected. `auto` reads records if the folder
   * holds .jsonl, .parquet or compressed .json, as a Hugging Face data set does, or if it holds
   * .json and no text except a README; otherwise it reads text. Default: `auto`.
   */
  kind: choice(
    inputKinds,
    "files to take from folders: .txt and .md, source code, or jsonl and parquet of text, chats or preferences",
    {
      value: "kind",
      standard: "records, unless a folder holds text and no records but plain .json",
    },
  ).optional(),
  /** Reads only these languages; only for kind "code". Default: all of `languages`. */
  languages: texts("a list of languages", "of source code, only this language", {
    value: "name",
    standard: "all",
  }).optional(),
  /**
   * Field of a record that holds its text, with dots for nested fields. Default: "text", or
   * "content" if a record has that. Of a chat, the field with its messages; default: "messages", or
   * "conversations".
   */
  textField: text(/[\s\S]/, "the name of a field", "field of a record with its text", {
    value: "path",
    standard: "text or content; of chats, messages or conversations",
  }).optional(),
  /** Keeps only records that meet this condition; see `parseFilter`. Default: all records. */
  filter: text(/[\s\S]/, "a condition", "keep records like: meta.lang == 'en' and stars >= 10", {
    value: "expression",
  }).optional(),
  /** Drops documents with fewer UTF-8 bytes. Default: drops none. */
  minBytes: bytes("drop shorter documents").optional(),
  /** Drops documents with more UTF-8 bytes. Default: drops none. */
  maxBytes: integer(1, Number.MAX_SAFE_INTEGER, "drop longer documents").optional(),
  /**
   * Split to read, for data sets in files such as `data/train-00000-of-00010.parquet` or
   * `validation/*.jsonl.zst`; "all" reads every file. Default: "train" for records if file names
   * tell splits apart; every file for text and code.
   */
  split: choice(["train", "validation", "test", "all"], "split to read, by the names of files", {
    standard: "of records, train if there are any",
  }).optional(),
  /** Names of folders to skip. Default: `excludedFolders` for code, no folders for other kinds. */
  exclude: texts("a list of folders' names", "folders not to enter", {
    standard: "of code, node_modules and the like",
  }).optional(),
  /**
   * Split that receives all documents of this input, for data that comes with its own validation
   * split. Default: each document's hash decides.
   */
  to: choice(["train", "validation"], "side that its documents go to, whatever their hash", {
    standard: "by hash",
  }).optional(),
};

export const inputSchema: OptionsSchema<typeof inputOptions> = section(
  "what to read",
  inputOptions,
);

/** An input to read. A plain string is short for `{ path }`. */
export interface Input extends z.input<typeof inputSchema> {}

const prepareOptions = {
  /**
   * Folder of the data set. It is created as a whole or not at all, and replaces an existing data
   * set.
   */
  out: path("data set to make; one that is there is replaced", { value: "folder" }),
  /** Path of a tokenizer. */
  tokenizer: path("a tokenizer.json or a folder with one"),
  /**
   * Template that writes chats: a model's folder, or a file in Jinja. Default: the one beside the
   * tokenizer.
   */
  chatTemplate: path("template that writes chats: a model's folder, or a file in Jinja", {
    value: "path",
    standard: "the tokenizer's",
  }).optional(),
  /** Drops documents that are byte-for-byte copies of an earlier one. Default: false. */
  deduplicate: flag("drop documents that have been there before, byte for byte").default(false),
  /**
   * Share of the documents to hold out for validation. Default: 0.05, or 0 if an input already goes
   * to validation.
   */
  validationFraction: belowOne("share of documents to hold out", {
    standard: "0.05, or 0 if an input goes to validation",
  }).optional(),
  /**
   * Tokens per shard: a shard ends with the document that reaches this number. Default: 134217728
   * (256 MiB).
   */
  shardTokens: integer(1, Number.MAX_SAFE_INTEGER, "tokens per shard").default(2 ** 27),
  /**
   * Largest share of a shard's tokens that may be in runs of one token. A shard with more is an
   * error. Default: 0.1.
   */
  maxRunShare: real(0, 1, "refuse repetitive shards beyond this").default(0.1),
  /** Token in front of each document. Default: "none". */
  documentStart: choice(["none", "bos"], "in front of each document", {
    value: "what",
  }).default("none"),
  /**
   * Token behind each document: none, the tokenizer's end-of-text token, or another special token by
   * its name, such as `<|eot_id|>`. A model that learns from the data ends its answers with this
   * token. Default: "eos".
   */
  documentEnd: text(/[\s\S]/, "none, eos or a special token", "behind each document", {
    value: "what",
  }).default("eos"),
  /**
   * Treatment of bytes that are not valid UTF-8: refuse the file, or replace them with U+FFFD.
   * Default: "error".
   */
  invalidUtf8: choice(["error", "replace"], "bytes that are no UTF-8: refuse, or put U+FFFD in", {
    value: "how",
  }).default("error"),
  /**
   * Treatment of records that are not JSON objects or have no text: refuse the file, or skip them.
   * Default: "error".
   */
  badRecords: choice(
    ["error", "skip"],
    "records that are no JSON or have no text: refuse, or leave out",
    { value: "how" },
  ).default("error"),
  /**
   * Skips files and folders that cannot be read, and reports them. Default: false, which throws an
   * error.
   */
  skipUnreadable: flag("leave out files that cannot be read, and say which").default(false),
  /**
   * Number of worker processes that encode; 0 encodes in this process. The output bytes are the
   * same. Default: one per core, or 0 for less than 4 MB.
   */
  workers: integer(0, 1024, "processes that encode", { standard: "one per core" }).optional(),
  /**
   * Discards unfinished work that cannot be resumed because options or files differ.
   * Default: false, which throws an error.
   */
  startOver: flag("discard unfinished work that differs in options or files").default(false),
  /**
   * Replaces the contents of `out` even if they are not a data set. Default: false, which throws an
   * error.
   */
  overwrite: flag("replace the output folder even if it is no data set").default(false),
};

export const prepareSchema: OptionsSchema<typeof prepareOptions> = section(
  "what is made of the inputs",
  prepareOptions,
);
