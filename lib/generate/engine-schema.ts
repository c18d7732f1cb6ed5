import { z } from "zod";
import { flag, integer, type OptionsSchema, real, section, texts } from "../core/option-kinds.js";
import { maxTokens, samplingOptions } from "./schema.js";

// The only list of the options of an engine and of its answers. The library, the command line and
// the server take names, ranges, defaults and help from it.

const answerOptions = {
  /** Maximum number of tokens to write. Default: as many as the context holds. */
  maxTokens: maxTokens(0, Number.MAX_SAFE_INTEGER).optional(),
  ...samplingOptions,
  /** Drops tokens less likely than this share of the likeliest one's probability. Default: 0. */
  minP: real(0, 1, "drop tokens less likely than this share of the likeliest one's").default(0),
  /** Divides the logits of tokens of the prompt and the answer. 1 is off. Default: 1. */
  repetitionPenalty: real(0.01, 100, "divides the logits of tokens that are there already").default(
    1,
  ),
  /** Is subtracted from the logits of tokens that the answer has. Default: 0. */
  presencePenalty: real(-100, 100, "is subtracted from the logits of the answer's tokens").default(
    0,
  ),
  /** Is subtracted from a token's logit for each time that the answer has it. Default: 0. */
  frequencyPenalty: real(
    -100,
    100,
    "is subtracted from a token's logit each time it has come",
  ).default(0),
  /** Additions to the logits of ids: `{ 42: -100 }`. Default: none. */
  logitBias: z
    // One id has one name: "05" beside "5" would be two additions to one logit.
    .record(z.string().regex(/^(0|[1-9]\d*)$/), real(-1e9, 1e9, "addition to the logit of an id"))
    .meta({ description: "additions to the logits of ids", expects: "numbers by token id" })
    .optional(),
  /** Seed of the random choices. Equal seeds, models and prompts give equal text. Default: 0. */
  seed: integer(
    0,
    Number.MAX_SAFE_INTEGER,
    "the same seed, model and prompt give the same text",
  ).default(0),
  /** Texts that end the answer. They are not part of it. Default: none. */
  stop: texts(
    "a list of texts that are not empty, of whole characters",
    "texts that end the answer",
    {},
    // Half of a character, a lone surrogate, would cut a character of the answer in two.
    /^\P{Surrogate}+$/u,
  ).default([]),
  /** Token ids that end the answer, beside the end of the text. Default: none. */
  stopTokens: z
    .array(integer(0, 2 ** 31 - 1, "a token id"))
    .readonly()
    .meta({ description: "token ids that end the answer", expects: "a list of token ids" })
    .default([]),
  /** Whether the end of the text ends no answer. Default: false. */
  ignoreEnd: flag("go on after the end of the text").default(false),
  /** How many of the likeliest tokens are given beside each token. Default: 0. */
  topLogprobs: integer(0, 100, "likeliest tokens that are given beside each token").default(0),
  /** Milliseconds between two parts of an answer, at least; its first and last come at once. Default: 0. */
  partMs: real(0, 60_000, "milliseconds between two parts of an answer, at least").default(0),
};

export const answerSchema: OptionsSchema<typeof answerOptions> = section(
  "how an answer is written",
  answerOptions,
);

const engineOptions = {
  /** Answers that are written at once; others wait. Default: 64 on a CPU, 256 on a GPU. */
  maxBatch: integer(1, 4096, "answers that are written at once", {
    standard: "64 on a CPU, 256 on a GPU",
  }).optional(),
  /** Requests that may wait; further ones are refused. Default: 1024. */
  maxQueue: integer(0, 1_000_000, "requests that may wait").default(1024),
  /** Longest prompt and answer together, in tokens. Default: the model's context. */
  maxLength: integer(2, 2 ** 24, "longest prompt and answer together, in tokens", {
    standard: "the model's context",
  }).optional(),
  /** Bytes of the key/value cache. Default: from the free memory. */
  cacheBytes: integer(1, Number.MAX_SAFE_INTEGER, "bytes of the key/value cache", {
    standard: "from the free memory",
  }).optional(),
  /** Tokens of a page of the cache, a multiple of 32. Default: 64. */
  pageSize: integer(1, 4096, "tokens of a page of the cache").default(64),
  /** Prompt tokens that one step computes. Default: 512 on a CPU, 2048 on a GPU. */
  promptTokens: integer(1, 2 ** 20, "prompt tokens that one step computes", {
    standard: "512 on a CPU, 2048 on a GPU",
  }).optional(),
  /**
   * Whether an answer in fp32 on a CPU has the same bits whatever is computed beside it. It is slower
   * for few answers at once. Default: false, and other answers change its last bits.
   */
  independentRows: flag("an answer's bits do not depend on those beside it; slower").default(false),
  /** Whether prompts that begin alike share the work. Default: true. */
  prefixCache: flag("share the work of prompts that begin alike").default(true),
};

export const engineSchema: OptionsSchema<typeof engineOptions> = section(
  "how an engine runs",
  engineOptions,
);

/** Options of an engine. */
export interface EngineOptions extends z.input<typeof engineSchema> {}
