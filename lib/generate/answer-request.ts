import type { z } from "zod";
import { argumentError, checkInstance, checkObject } from "../core/check.js";
import { ArgumentError } from "../core/errors.js";
import { checkOptionsBy } from "../core/option-problems.js";
import { answerSchema } from "./engine-schema.js";
import type { SequenceSettings } from "./sequence.js";

/** Options of one request. */
export interface AnswerOptions extends z.input<typeof answerSchema> {
  /** Number of answers; answer i has the seed `seed` + i. Default: 1. */
  n?: number;
  /** Ends the answers at once, and frees their memory. */
  signal?: AbortSignal;
}

/** Options of one request, checked. */
export interface AnswerRequestSettings {
  n: number;
  signal: AbortSignal | undefined;
  settings: z.output<typeof answerSchema>;
  /** Additions to the logits of all rows of the model's vocabulary; null for none. */
  bias: Float32Array | null;
}

/**
 * Checks the options of a request.
 * @param vocabSize ids that answers may have
 * @param rows rows of the model's vocabulary
 * @throws ArgumentError naming the option, what is allowed and what was given
 */
export function readAnswerOptions(
  options: AnswerOptions,
  vocabSize: number,
  rows: number,
): AnswerRequestSettings {
  const op = "Engine";
  checkObject(op, "options", options, "an object of options");
  const { signal, n = 1, ...given } = options;
  if (!(Number.isSafeInteger(n) && n >= 1 && n <= 128)) {
    throw argumentError(op, "an integer from 1 to 128", "n", n);
  }
  if (signal !== undefined) checkInstance(op, "signal", signal, AbortSignal, "an AbortSignal");
  const settings = checkOptionsBy(op, answerSchema, given);
  for (const id of [...Object.keys(settings.logitBias ?? {}), ...settings.stopTokens]) {
    if (Number(id) < vocabSize) continue;
    throw new ArgumentError(`[Engine] expected token ids below ${vocabSize}, got ${id}`);
  }
  return { signal, n, settings, bias: denseBias(settings.logitBias, rows) };
}

function denseBias(
  given: Readonly<Record<string, number>> | undefined,
  rows: number,
): Float32Array | null {
  if (!given) return null;
  const bias = new Float32Array(rows);
  for (const [id, value] of Object.entries(given)) bias[Number(id)] = value;
  return bias;
}

/**
 * The settings of one of a request's answers.
 * @param index which of the `n` answers
 * @param room tokens that fit behind the prompt
 * @param endTokens tokens that end an answer, unless the request goes on after them
 */
export function sequenceSettings(
  { settings, bias }: AnswerRequestSettings,
  index: number,
  room: number,
  endTokens: ReadonlySet<number>,
): SequenceSettings {
  const { temperature, topK, topP, minP, seed, stopTokens, ignoreEnd, topLogprobs } = settings;
  const { repetitionPenalty, presencePenalty, frequencyPenalty, maxTokens = room } = settings;
  return {
    maxTokens: Math.min(maxTokens, room),
    ends: new Set([...stopTokens, ...(ignoreEnd ? [] : endTokens)]),
    sampling: {
      temperature,
      topK,
      topP,
      minP,
      repetitionPenalty,
      presencePenalty,
      frequencyPenalty,
      seed: (seed + index) % Number.MAX_SAFE_INTEGER,
    },
    bias,
    top: topLogprobs,
  };
}
