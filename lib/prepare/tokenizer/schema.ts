import type { z } from "zod";
import {
  choice,
  flag,
  integer,
  type OptionsSchema,
  path,
  real,
  section,
  text,
  texts,
} from "../../core/option-kinds.js";
import { inputSchema, prepareSchema } from "../schema.js";
import { splitRuleNames } from "./split-rules.js";

// The only list of the options of `trainTokenizer` and `llamaforge tokenizer train`.

const options = {
  /** Folder for tokenizer.json and tokenizer_config.json. */
  out: path("folder for tokenizer.json and tokenizer_config.json", { value: "folder" }),
  /** Number of ids, special tokens included. Default: 32000. */
  vocabSize: integer(2, 2 ** 21, "number of ids, special tokens included").default(32000),
  /**
   * Treatment of characters without an id of their own. `byte-level` writes every text as bytes, and
   * merges these, as GPT-2, Llama 3 and Qwen do. `byte-fallback` merges characters, and writes only
   * the rare ones as bytes, as Llama 2 does. Default: "byte-level".
   */
  type: choice(
    ["byte-level", "byte-fallback"],
    "what the merges start from: bytes, or characters",
    {
      value: "type",
    },
  ).default("byte-level"),
  /**
   * Rule that cuts texts into words, which no token crosses: Llama 3's (digits in groups of up to
   * three), Qwen 2's (single digits) or GPT-2's. llama.cpp knows all of them. Default: "llama3".
   */
  rule: choice(splitRuleNames, "rule that cuts texts into words, which no token crosses").default(
    "llama3",
  ),
  /** Token that begins a text; "none" for a tokenizer without one. Default: "<s>". */
  bos: text(/[\s\S]/, "a token, or none", "token that begins a text, or none", {
    value: "token",
  }).default("<s>"),
  /** Token that ends a text. Default: "</s>". */
  eos: text(/[\s\S]/, "a token", "token that ends a text", { value: "token" }).default("</s>"),
  /** Further special tokens, such as those of a chat template. Default: none. */
  specialTokens: texts("a list of tokens", "further special token, such as a chat's", {
    value: "token",
    standard: "none",
  }).optional(),
  /**
   * Share of the text's characters that get an id of their own, the most frequent ones first; only
   * for type "byte-fallback". ASCII always gets its ids. Default: 0.9995.
   */
  characterCoverage: real(0, 1, "of byte-fallback, share of the text whose characters get ids", {
    standard: "0.9995",
  }).optional(),
  /** Pairs that occur less often are not merged. Default: 2. */
  minFrequency: integer(1, 2 ** 31, "occurrences that a pair needs to be merged").default(2),
  /**
   * Longest token, in bytes for type "byte-level" and in characters for "byte-fallback". Default: any
   * length.
   */
  maxTokenLength: integer(2, 2 ** 20, "longest token: bytes, or characters", {
    standard: "any length",
  }).optional(),
  /** Replaces a tokenizer in the folder. Default: false, which throws an error. */
  overwrite: flag("replace a tokenizer in the folder").default(false),
  /**
   * Treatment of bytes that are not valid UTF-8: refuse the file, or replace them with U+FFFD.
   * Default: "error".
   */
  invalidUtf8: prepareSchema.shape.invalidUtf8,
  /**
   * Treatment of records that are not JSON objects or have no text: refuse the file, or skip them.
   * Default: "error".
   */
  badRecords: prepareSchema.shape.badRecords,
  /** Skips files and folders that cannot be read. Default: false, which throws an error. */
  skipUnreadable: prepareSchema.shape.skipUnreadable,
};

export const trainTokenizerSchema: OptionsSchema<typeof options> = section(
  "a tokenizer's training",
  options,
);

/** An input of a tokenizer's training. All documents are read, so that none goes to a split. */
export const tokenizerInputSchema = inputSchema.omit({ to: true });

/** An input to read, as `prepare` reads it. A plain string is short for `{ path }`. */
export interface TokenizerInput extends z.input<typeof tokenizerInputSchema> {}
