import { noGrad } from "../autograd.js";
import { ArgumentError } from "../errors.js";
import { sample } from "../ops/index.js";
import { outsideScopes, scope } from "../scope.js";
import { type Tensor, tensor } from "../tensor.js";
import type { KeyValueCache, Llama } from "./llama.js";

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

/** The logits of the last position, (1, vocab). */
function lastLogits(model: Llama, ids: readonly number[], cache: KeyValueCache): Tensor {
  const input = tensor(Int32Array.from(ids), { shape: [1, ids.length], device: model.device });
  const logits = model.forward(input, cache);
  const { vocabSize } = model.config;
  return logits.view([1, vocabSize], (ids.length - 1) * vocabSize);
}

/**
 * Continues a prompt token by token with a key/value cache. When the model's context is full it starts again from the
 * newest half of the text, so the length is not limited.
 * @param prompt token ids, at least one
 * @throws ArgumentError for an empty prompt, ids outside the vocabulary, options out of range
 */
export async function* generateTokens(
  model: Llama,
  prompt: readonly number[],
  options: GenerateOptions,
): AsyncGenerator<number, void, void> {
  const { maxTokens, temperature = 0.8, topK = 50, topP = 1, seed = 0, stopAt = null } = options;
  const { vocabSize, contextLength } = model.config;
  if (prompt.length === 0)
    throw new ArgumentError("[generate] expected a prompt of at least one token");
  const wrong = prompt.find((id) => !Number.isInteger(id) || id < 0 || id >= vocabSize);
  if (wrong !== undefined) {
    throw new ArgumentError(
      `[generate] expected token ids from 0 to ${vocabSize - 1} in the prompt, got ${wrong}`,
    );
  }
  if (!Number.isInteger(maxTokens) || maxTokens < 0) {
    throw new ArgumentError(
      `[generate] expected a whole number from 0 for maxTokens, got ${maxTokens}`,
    );
  }
  const text = [...prompt];
  const length = Math.min(contextLength, prompt.length + maxTokens);
  let cache: KeyValueCache | null = null;
  const dropCache = (): void => {
    for (const layer of cache?.layers ?? []) layer.dispose();
    cache = null;
  };
  try {
    for (let count = 0; count < maxTokens; count++) {
      const id: number = await scope(async () =>
        noGrad(async () => {
          let fresh: readonly number[] = text.slice(-1);
          if (!cache || cache.position >= length) {
            dropCache();
            // From a full context only the newer half goes on, so this happens once in many tokens.
            fresh = text.length >= contextLength ? text.slice(-Math.ceil(contextLength / 2)) : text;
            cache = unscopedCache(model, length);
          }
          const logits = lastLogits(model, fresh, cache);
          const ids = sample(logits, { temperature, topK, topP, seed, offset: count });
          return await ids.item();
        }),
      );
      if (id === stopAt) return;
      text.push(id);
      yield id;
    }
  } finally {
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
