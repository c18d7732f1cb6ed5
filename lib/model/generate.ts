import { noGrad } from "../autograd.js";
import {
  argumentError,
  checkFunction,
  checkInstance,
  checkInteger,
  checkObject,
  checkOptions,
  checkString,
  describe,
} from "../check.js";
import { tensor } from "../create.js";
import { ArgumentError } from "../errors.js";
import { type SampleOptions, sample } from "../ops/index.js";
import { outsideScopes, scope } from "../scope.js";
import type { Tensor } from "../tensor.js";
import { type KeyValueCache, Llama } from "./llama.js";

export interface GenerateOptions {
  /** Tokens to add at most. */
  maxTokens: number;
  /** 0 takes the likeliest token; 1 samples as the model says (0.8). */
  temperature?: number;
  /** Sample among this many likeliest tokens; 0: all (50). */
  topK?: number;
  /** Sample among the likeliest tokens with this total probability (1). */
  topP?: number;
  /** The same seed, model and prompt give the same text (0). */
  seed?: number;
  /** Stops before this token, e.g. the end of a document. */
  stopAt?: number | null;
}

/** A token that the device has been told to choose. */
interface ChosenToken {
  /** i32 (1), outside of every scope. */
  ids: Tensor;
  /** What it is, once the device has got there. */
  id: Promise<number>;
}

/** Enqueues the model on `input` (1, time) and the choice of the token after it. */
function chooseNext(
  model: Llama,
  input: () => Tensor,
  cache: KeyValueCache,
  options: SampleOptions,
): ChosenToken {
  const { vocabSize } = model.config;
  const ids = outsideScopes(() =>
    noGrad(() =>
      scope(() => {
        const tokens = input();
        const logits = model.forward(tokens, cache);
        return sample(logits.view([1, vocabSize], (tokens.size - 1) * vocabSize), options);
      }),
    ),
  );
  const id = ids.item();
  // Waited for later, or not at all; a failure until then must not count as unhandled.
  id.catch(() => {});
  return { ids, id };
}

const generateOptions = ["maxTokens", "temperature", "topK", "topP", "seed", "stopAt"];

/**
 * Continues a prompt token by token with a key/value cache. When the model's context is full it starts again from the
 * newest half of the text, so the length is not limited. While a token is on its way to the caller the device already works
 * on the next one.
 * @param prompt token ids, at least one
 * @throws ArgumentError for an empty prompt, ids outside the vocabulary, options out of range or of another name
 */
export async function* generateTokens(
  model: Llama,
  prompt: readonly number[],
  given: GenerateOptions,
): AsyncGenerator<number, void, void> {
  const op = "generate";
  checkInstance(op, "model", model, Llama, "a Llama");
  checkOptions(op, given, generateOptions);
  const {
    maxTokens,
    temperature = 0.8,
    topK = 50,
    topP = 1,
    seed = 0,
    stopAt = null,
  } = given ?? {};
  const { vocabSize, contextLength } = model.config;
  if (!Array.isArray(prompt) && !ArrayBuffer.isView(prompt)) {
    throw argumentError(op, "an array of token ids", "prompt", prompt);
  }
  if (prompt.length === 0)
    throw new ArgumentError("[generate] expected a prompt of at least one token");
  const wrong = prompt.find((id) => !Number.isInteger(id) || id < 0 || id >= vocabSize);
  if (wrong !== undefined) {
    throw new ArgumentError(
      `[generate] expected token ids from 0 to ${vocabSize - 1} in the prompt, got ${describe(wrong)}`,
    );
  }
  checkInteger(op, "maxTokens", maxTokens, { min: 0 });
  if (stopAt !== null) checkInteger(op, "stopAt", stopAt, { min: 0 });
  const text = [...prompt];
  const length = Math.min(contextLength, prompt.length + maxTokens);
  let cache: KeyValueCache | null = null;
  const dropCache = (): void => {
    for (const layer of cache?.layers ?? []) layer.dispose();
    cache = null;
  };
  const options = (offset: number): SampleOptions => ({ temperature, topK, topP, seed, offset });
  /** From the text alone, with a new cache. */
  const start = (count: number): ChosenToken => {
    dropCache();
    // From a full context only the newer half goes on, so this happens once in many tokens.
    const fresh = text.length >= contextLength ? text.slice(-Math.ceil(contextLength / 2)) : text;
    cache = unscopedCache(model, length);
    const input = (): Tensor =>
      tensor(Int32Array.from(fresh), { shape: [1, fresh.length], device: model.device });
    return chooseNext(model, input, cache, options(count));
  };
  let current: ChosenToken | null = null;
  let next: ChosenToken | null = null;
  try {
    for (let count = 0; count < maxTokens; count++) {
      current = next ?? start(count);
      next = null;
      const { ids } = current;
      if (cache && (cache as KeyValueCache).position < length && count + 1 < maxTokens) {
        next = chooseNext(model, () => ids.view([1, 1]), cache, options(count + 1));
      }
      const id: number = await current.id;
      ids.dispose();
      current = null;
      if (id === stopAt) return;
      text.push(id);
      yield id;
    }
  } finally {
    current?.ids.dispose();
    next?.ids.dispose();
    dropCache();
  }
}

/** A cache that outlives the scope of one token. */
function unscopedCache(model: Llama, length: number): KeyValueCache {
  return outsideScopes(() => model.createCache(1, length));
}

/** What turns tokens into text and back; lib/data's Tokenizer is one. */
export interface TextCodec {
  encode(text: string): ArrayLike<number> | Promise<ArrayLike<number>>;
  /** A decoder that gives whole characters only, as tokens arrive. */
  decodeStream(): { push(id: number): string; end(): string };
  readonly eosId: number | null;
}

/**
 * Continues a prompt as text; yields pieces as they come. An empty prompt starts a new document.
 * @see generateTokens
 */
export async function* generate(
  model: Llama,
  tokenizer: TextCodec,
  prompt: string,
  options: GenerateOptions,
): AsyncGenerator<string, void, void> {
  checkInstance("generate", "model", model, Llama, "a Llama");
  checkObject("generate", "tokenizer", tokenizer, "a tokenizer");
  checkFunction("generate", "tokenizer.encode", tokenizer.encode);
  checkFunction("generate", "tokenizer.decodeStream", tokenizer.decodeStream);
  checkString("generate", "prompt", prompt);
  checkOptions("generate", options, generateOptions);
  const encoded = Array.from(await tokenizer.encode(prompt));
  // Documents follow an end-of-sequence token in training, so that is what a new one begins after.
  const start = encoded.length > 0 ? encoded : tokenizer.eosId === null ? [] : [tokenizer.eosId];
  const decoder = tokenizer.decodeStream();
  for await (const id of generateTokens(model, start, { stopAt: tokenizer.eosId, ...options })) {
    const piece = decoder.push(id);
    if (piece) yield piece;
  }
  const rest = decoder.end();
  if (rest) yield rest;
}
