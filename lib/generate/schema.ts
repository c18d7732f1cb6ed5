import { z } from "zod";
import { integer, type OptionsSchema, positive, real, section } from "../core/option-kinds.js";

// The only list of the options of generation. `generate`, the command line and a recipe's `sample` section take their names,
// ranges, defaults and help from it; the doc comments are those of `GenerateOptions`.

/** How the next token is chosen. */
export const samplingOptions = {
  /** 0 takes the likeliest token; 1 samples as the model says. Default: 0.8. */
  temperature: real(0, 10, "0 takes the likeliest token; 1 samples as the model says").default(0.8),
  /** Sample among this many likeliest tokens; 0 or more than there are: all. Default: 50. */
  topK: integer(
    0,
    2 ** 24,
    "sample among this many likeliest tokens; 0 or more than there are: all",
  ).default(50),
  /** Sample among the likeliest tokens with this total probability. Default: 1. */
  topP: positive(1, "sample among the likeliest tokens with this total probability").default(1),
};

/** Tokens to write. Each place has its own limits and default: a sample during training is short. */
export function maxTokens(min: number, max: number) {
  return integer(min, max, "tokens to write at most");
}

const generateOptions = {
  /** Tokens to add at most. */
  maxTokens: maxTokens(0, Number.MAX_SAFE_INTEGER),
  ...samplingOptions,
  /** The same seed, model and prompt give the same text. Default: 0. */
  seed: integer(
    0,
    Number.MAX_SAFE_INTEGER,
    "the same seed, model and prompt give the same text",
  ).default(0),
  /** Stops before this token, e.g. the end of a document. Default: null, no token. */
  stopAt: integer(0, Number.MAX_SAFE_INTEGER, "stops before this token").nullable().default(null),
  /**
   * How many ids the tokenizer has; none from here on is chosen. A model may have more rows than
   * that, for its vocabulary is often padded to a round number. Default: all of the model's.
   */
  vocabSize: integer(1, Number.MAX_SAFE_INTEGER, "ids that the tokenizer has", {
    standard: "all of the model's",
  }).optional(),
  /** Ids below `vocabSize` that are never chosen, e.g. gaps in the tokenizer's vocabulary. Default: none. */
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

/** How a text is continued. */
export interface GenerateOptions extends z.input<typeof generateSchema> {}
