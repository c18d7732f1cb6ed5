import { noGrad } from "../core/autograd.js";
import {
  argumentError,
  checkArray,
  checkFunction,
  checkInstance,
  checkInteger,
  checkObject,
  checkString,
  describe,
} from "../core/check.js";
import { tensor } from "../core/create.js";
import { ArgumentError } from "../core/errors.js";
import { checkOptionsBy } from "../core/option-problems.js";
import { outsideScopes, scope } from "../core/scope.js";
import type { Tensor } from "../core/tensor.js";
import { explainNonFinite } from "../model/finite.js";
import { type Cache, LanguageModel } from "../model/language-model.js";
import { type SampleOptions, sample, where } from "../ops/index.js";
import { type GenerateOptions, generateSchema } from "./schema.js";

/** A token whose choice has been enqueued on the device. */
interface EnqueuedToken {
  /** i32 (1), outside of every scope. */
  ids: Tensor;
  /** The token's id, once the device has chosen it. */
  id: Promise<number>;
}

/**
 * The tokens that may be chosen: ids below `count` whose entry in `allowed` (1, count) is not 0.
 */
interface Choice {
  readonly count: number;
  /** i32, outside of every scope; null if all ids below `count` may be chosen. */
  readonly allowed: Tensor | null;
}

function choiceOf(model: LanguageModel, { vocabSize, never = [] }: GenerateOptions): Choice {
  const { vocabSize: rows } = model.config;
  const count = Math.min(rows, vocabSize ?? rows);
  const allowed = new Int32Array(count).fill(1);
  for (const id of never) {
    checkInteger("generate", "an id of never", id, { min: 0 });
    if (id < count) allowed[id] = 0;
  }
  const possible = allowed.reduce((sum, one) => sum + one, 0);
  if (possible === 0) {
    throw new ArgumentError(`[generate] expected an id to be left, but never has all ${count}`);
  }
  if (possible === count) return { count, allowed: null };
  const mask = () => tensor(allowed, { shape: [1, count], device: model.device });
  return { count, allowed: outsideScopes(mask) };
}

/** Enqueues the model on `input` (1, time) and the choice of the next token. */
function chooseNext(
  model: LanguageModel,
  input: () => Tensor,
  cache: Cache,
  { count, allowed }: Choice,
  options: SampleOptions,
): EnqueuedToken {
  const { vocabSize } = model.config;
  const ids = outsideScopes(() =>
    noGrad(() =>
      scope(() => {
        const tokens = input();
        const end = cache.position + tokens.size;
        const logits = model.forward(tokens, cache);
        if (cache.position !== end) {
          throw new ArgumentError(
            `[generate] expected ${model.constructor.name}.hidden to add ${tokens.size} tokens to its cache, ` +
              `so that position is ${end}, but position is ${describe(cache.position)}`,
          );
        }
        const last = logits.view([1, count], (tokens.size - 1) * vocabSize);
        return sample(allowed ? where(allowed, last, Number.NEGATIVE_INFINITY) : last, options);
      }),
    ),
  );
  const id = ids.item();
  // The result is awaited later or never. Until then a failure must not count as unhandled.
  id.catch(() => {});
  return { ids, id };
}

/**
 * Continues a prompt token by token with a key/value cache. When the model's context is full,
 * generation restarts from the newest half of the text, so the length is unlimited. The device
 * computes the next token while the caller handles the current one.
 * @param prompt token ids, at least one
 * @throws ArgumentError for an empty prompt, ids outside the vocabulary, and unknown or
 *   out-of-range options
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
  if (!Array.isArray(prompt) && !ArrayBuffer.isView(prompt)) {
    throw argumentError(op, "an array of token ids", "prompt", prompt);
  }
  if (prompt.length === 0)
    throw new ArgumentError("[generate] expected a prompt of at least one token");
  const wrong = prompt.findIndex((id) => !Number.isInteger(id) || id < 0 || id >= vocabSize);
  if (wrong >= 0) {
    throw new ArgumentError(
      `[generate] expected token ids from 0 to ${vocabSize - 1} in the prompt, got ${describe(prompt[wrong])}`,
    );
  }
  const choice = choiceOf(model, settings);
  const text = [...prompt];
  const length = Math.min(contextLength, prompt.length + maxTokens);
  let cache: Cache | null = null;
  const dropCache = (): void => {
    for (const layer of cache?.layers ?? []) layer.dispose();
    cache = null;
  };
  const options = (offset: number): SampleOptions => ({ temperature, topK, topP, seed, offset });
  /** Restarts from the text alone, with a new cache. */
  const start = (count: number): EnqueuedToken => {
    dropCache();
    // With a full context only the newer half is kept, so that restarts are rare.
    const fresh = text.length >= contextLength ? text.slice(-Math.ceil(contextLength / 2)) : text;
    cache = unscopedCache(model, length);
    const input = (): Tensor =>
      tensor(Int32Array.from(fresh), { shape: [1, fresh.length], device: model.device });
    return chooseNext(model, input, cache, choice, options(count));
  };
  let current: EnqueuedToken | null = null;
  let next: EnqueuedToken | null = null;
  try {
    for (let count = 0; count < maxTokens; count++) {
      current = next ?? start(count);
      next = null;
      const { ids } = current;
      if (cache && (cache as Cache).position < length && count + 1 < maxTokens) {
        next = chooseNext(model, () => ids.view([1, 1]), cache, choice, options(count + 1));
      }
      const id: number = await current.id.catch((error) => explainNonFinite(model, error));
      ids.dispose();
      current = null;
      if (id === stopAt) return;
      text.push(id);
      yield id;
    }
  } finally {
    current?.ids.dispose();
    next?.ids.dispose();
    choice.allowed?.dispose();
    dropCache();
  }
}

/** A cache that outlives the scope of one token. */
function unscopedCache(model: LanguageModel, length: number): Cache {
  const cache = outsideScopes(() => model.createCache(1, length));
  const name = `the result of ${model.constructor.name}.createCache`;
  checkObject("generate", name, cache, "a cache: { layers, position }");
  checkArray("generate", `layers of ${name}`, cache.layers, "an array of tensors");
  checkInteger("generate", `position of ${name}`, cache.position, { min: 0, max: 0 });
  return cache;
}

/** Turns text into tokens and back; lib/data's Tokenizer is one implementation. */
export interface TextCodec {
  encode(text: string): ArrayLike<number> | Promise<ArrayLike<number>>;
  /** A decoder that returns only whole characters as tokens arrive. */
  decodeStream(): { push(id: number): string; end(): string };
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
