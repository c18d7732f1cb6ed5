import { z } from "zod";
import { integer, type OptionsSchema, positive, real, section } from "../core/option-kinds.js";

// The only list of the options of generation. `generate`, the command line and a recipe's `sample`
// section take names, ranges, defaults and help from it. Its doc comments are those of
// `GenerateOptions`.

/** Options for choosing the next token. */
export const samplingOptions = {
  /** 0 takes the likeliest token; 1 samples from the model's own distribution. Default: 0.8. */
  temperature: real(0, 10, "0 takes the likeliest token; 1 samples as the model says").default(0.8),
  /**
   * Samples among this many likeliest tokens. 0, or more than the vocabulary, means all.
   * Default: 50.
   */
  topK: integer(
    0,
    2 ** 24,
    "sample among this many likeliest tokens; 0 or more than there are: all",
  ).default(50),
  /** Samples among the likeliest tokens with this total probability. Default: 1. */
  topP: positive(1, "sample among the likeliest tokens with this total probability").default(1),
};

/**
 * Number of tokens to write. Each caller sets its own limits and default, because a sample during
 * training is short.
 */
export function maxTokens(min: number, max: number) {
  return integer(min, max, "tokens to write at most");
}

const generateOptions = {
  /** Maximum number of tokens to add. */
  maxTokens: maxTokens(0, Number.MAX_SAFE_INTEGER),
  ...samplingOptions,
  /** Seed of the random choices. Equal seeds, models and prompts give equal text. Default: 0. */
  seed: integer(
    0,
    Number.MAX_SAFE_INTEGER,
    "the same seed, model and prompt give the same text",
  ).default(0),
  /** Stops before this token, e.g. the end of a document. Default: null, no token. */
  stopAt: integer(0, Number.MAX_SAFE_INTEGER, "stops before this token").nullable().default(null),
  /**
   * Number of ids that the tokenizer has. Ids from this number on are never chosen. A model may
   * have more rows, because a vocabulary is often padded to a round number. Default: all of the
   * model's rows.
   */
  vocabSize: integer(1, Number.MAX_SAFE_INTEGER, "ids that the tokenizer has", {
    standard: "all of the model's",
  }).optional(),
  /**
   * Ids below `vocabSize` that are never chosen, such as gaps in the tokenizer's vocabulary.
   * Default: none.
   */
  never: z
    .custom<Iterable<number>>((value) => typeof Object(value)[Symbol.iterator] === "function")
    .meta({
      description: "ids that are never chosen",
      expects: "ids that can be iterated",
      standard: "none",
    })
    .optional(),
};

export const generateSchema: OptionsSchema<typeof generateOptions> = section(
  "how a text is continued",
  generateOptions,
);

/** Options for continuing a text. */
export interface GenerateOptions extends z.input<typeof generateSchema> {}
