import {
  argumentError,
  checkFunction,
  checkInstance,
  checkInteger,
  checkObject,
  checkString,
  describe,
} from "../core/check.js";
import { ArgumentError } from "../core/errors.js";
import { checkOptionsBy } from "../core/option-problems.js";
import { LanguageModel } from "../model/language-model.js";
import { AnswerQueue } from "./answer.js";
import { type GenerateOptions, generateSchema } from "./schema.js";
import { Sequence } from "./sequence.js";
import { StepLoop } from "./step-loop.js";

/** Tokens of a page of the cache. */
const pageSize = 64;

/** The ids below `rows` that may not be chosen. */
function bannedIds(rows: number, { vocabSize, never = [] }: GenerateOptions): number[] {
  const count = Math.min(rows, vocabSize ?? rows);
  const banned = new Set<number>();
  for (const id of never) {
    checkInteger("generate", "an id of never", id, { min: 0 });
    if (id < count) banned.add(id);
  }
  if (banned.size === count) {
    throw new ArgumentError(`[generate] expected an id to be left, but never has all ${count}`);
  }
  for (let id = count; id < rows; id++) banned.add(id);
  return [...banned];
}

/**
 * Continues a prompt token by token with a key/value cache. When the model's context is full,
 * generation restarts from the newest half of the text, so the length is unlimited. The device
 * computes the next token while the caller handles the current one. An `Engine` continues many
 * prompts at once.
 * @param prompt token ids, at least one
 * @throws ArgumentError for an empty prompt, ids outside the vocabulary, unknown or out-of-range
 *   options, and a model without a paged cache
 * @throws NonFiniteError if the model's logits give no probabilities; the message names the weights
 *   that are not finite
 */
export async function* generateTokens(
  model: LanguageModel,
  prompt: readonly number[],
  given: GenerateOptions,
): AsyncGenerator<number, void, void> {
  const op = "generate";
  checkInstance(op, "model", model, LanguageModel, "a language model");
  const settings = checkOptionsBy(op, generateSchema, given);
  const { maxTokens, temperature, topK, topP, seed, stopAt } = settings;
  const { vocabSize, contextLength } = model.config;
  checkInteger(op, "vocabSize of the model's config", vocabSize, { min: 1 });
  checkInteger(op, "contextLength of the model's config", contextLength, { min: 1 });
  const text = checkedPrompt(prompt, vocabSize);
  const banned = bannedIds(vocabSize, settings);
  if (maxTokens === 0) return;
  const length = Math.min(contextLength, text.length + maxTokens);
  const loop = new StepLoop(model, {
    pages: Math.ceil(length / pageSize),
    mostPages: Math.ceil(length / pageSize),
    pageSize,
    maxBatch: 1,
    promptTokens: length,
    prefixCache: false,
    banned,
  });
  let sequence: Sequence | null = null;
  try {
    for (let count = 0; count < maxTokens; ) {
      // With a full context only the newer half is kept, so that restarts are rare.
      const fresh = text.length >= contextLength ? text.slice(-Math.ceil(contextLength / 2)) : text;
      const queue = new AnswerQueue(1);
      sequence = new Sequence(
        fresh,
        {
          // The last token needs no place in the cache.
          maxTokens: Math.min(maxTokens - count, length - fresh.length + 1),
          ends: new Set(stopAt === null ? [] : [stopAt]),
          firstDraw: count,
          sampling: { temperature, topK, topP, seed },
          bias: null,
          top: 0,
        },
        {
          onToken: (token) => {
            queue.push(0, "", token, null);
            return true;
          },
          onEnd: (finishReason) => queue.push(0, "", null, finishReason),
          onError: (error) => queue.fail(error),
        },
      );
      loop.add(sequence);
      loop.wake();
      for (let part = await queue.next(); part; part = await queue.next()) {
        for (const { id } of part.tokens) {
          count++;
          text.push(id);
          yield id;
        }
        if (part.finishReason === "stop") return;
      }
    }
  } finally {
    if (sequence) sequence.done = true;
    // Steps that are on their way still use the cache.
    await loop.idle();
    loop.free();
  }
}

/** A copy of a prompt of ids below `vocabSize`. @throws ArgumentError naming the first wrong one */
function checkedPrompt(prompt: readonly number[], vocabSize: number): number[] {
  if (!Array.isArray(prompt) && !ArrayBuffer.isView(prompt)) {
    throw argumentError("generate", "an array of token ids", "prompt", prompt);
  }
  if (prompt.length === 0)
    throw new ArgumentError("[generate] expected a prompt of at least one token");
  const wrong = prompt.findIndex((id) => !Number.isInteger(id) || id < 0 || id >= vocabSize);
  if (wrong >= 0) {
    throw new ArgumentError(
      `[generate] expected token ids from 0 to ${vocabSize - 1} in the prompt, got ${describe(prompt[wrong])}`,
    );
  }
  return [...prompt];
}

/** Turns text into tokens and back; lib/data's Tokenizer is one implementation. */
export interface TextCodec {
  /** The ids of a text. */
  encode(text: string): ArrayLike<number> | Promise<ArrayLike<number>>;
  /** A decoder that returns only whole characters as tokens arrive. */
  decodeStream(): {
    /** The text that a token completes. */
    push(id: number): string;
    /** The text that is left. */
    end(): string;
  };
  readonly eosId: number | null;
  /** Every id is below this number; see GenerateOptions. */
  readonly vocabSize?: number;
  /** Ids below `vocabSize` without a token. */
  readonly gaps?: Iterable<number>;
}

/**
 * Continues a prompt as text and yields pieces as they become final. Prompt and continuation are
 * decoded as one text, and only the text after the prompt's is returned. An empty prompt starts a
 * new document.
 * @see generateTokens
 */
export async function* generate(
  model: LanguageModel,
  tokenizer: TextCodec,
  prompt: string,
  options: GenerateOptions,
): AsyncGenerator<string, void, void> {
  checkInstance("generate", "model", model, LanguageModel, "a language model");
  checkObject("generate", "tokenizer", tokenizer, "a tokenizer");
  checkFunction("generate", "tokenizer.encode", tokenizer.encode);
  checkFunction("generate", "tokenizer.decodeStream", tokenizer.decodeStream);
  checkString("generate", "prompt", prompt);
  checkOptionsBy("generate", generateSchema, options);
  const encoded = Array.from(await tokenizer.encode(prompt));
  // In training a document follows an end-of-sequence token, so a new document starts from that
  // token.
  const start = encoded.length > 0 ? encoded : tokenizer.eosId === null ? [] : [tokenizer.eosId];
  const { eosId, vocabSize, gaps } = tokenizer;
  const settings = {
    stopAt: eosId,
    ...(vocabSize !== undefined && { vocabSize }),
    ...(gaps && { never: gaps }),
    ...options,
  };
  const decoder = tokenizer.decodeStream();
  // The space between two words belongs to the second word's token. The decoder shows it only after
  // a first word.
  for (const id of start) decoder.push(id);
  for await (const id of generateTokens(model, start, settings)) {
    const piece = decoder.push(id);
    if (piece) yield piece;
  }
  const rest = decoder.end();
  if (rest) yield rest;
}
