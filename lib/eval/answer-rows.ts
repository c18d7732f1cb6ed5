import { noGrad } from "../core/autograd.js";
import { tensor } from "../core/create.js";
import { outsideScopes, scope } from "../core/scope.js";
import type { Tensor } from "../core/tensor.js";
import { cacheRows, disposeCache, expectPosition, openCache } from "../generate/caches.js";
import type { Cache, Context, LanguageModel } from "../model/language-model.js";
import { embedding, reshape, slice } from "../ops/index.js";

const op = "answers";

/** Texts that grow by a token at a time, one in each row of a batch. */
export interface AnswerRows {
  /** Whether `advance` can follow before the host knows the tokens. */
  readonly cached: boolean;
  /** Hidden states of the newest tokens, (rows, hidden), in the current scope. */
  start(): Tensor;
  /**
   * Appends a token to each row.
   * @param ids (rows) i32
   * @param tokens the ids on the host, which a model without a cache needs
   * @returns hidden states of the new tokens, as of `start`
   */
  advance(ids: Tensor, tokens: readonly number[] | null): Tensor;
  /** Keeps these rows and leaves out the others. */
  keep(rows: readonly number[]): void;
  dispose(): void;
}

function i32(values: readonly number[] | Int32Array, rows: number, model: LanguageModel): Tensor {
  const shape = [rows, values.length / rows];
  return tensor(Int32Array.from(values), { shape, device: model.device });
}

function hiddenOf(model: LanguageModel, ids: Tensor, cache?: Cache, context?: Context): Tensor {
  model.store.parallel?.beginMicroBatch(false);
  return noGrad(() => model.hidden(ids, cache, context));
}

/**
 * Rows of a model with a cache. Prompts are padded on the left, so that all rows end at one place of
 * the cache.
 */
export class CachedRows implements AnswerRows {
  readonly cached = true;
  readonly #model: LanguageModel;
  readonly #prompts: readonly Int32Array[];
  readonly #passTokens: number;
  #cache: Cache;
  /** Places of the cache before each row's first token. */
  #padding: readonly number[];

  /**
   * @param length most tokens of a prompt and its answer
   * @param passTokens most tokens of a forward pass; longer prompts are read in parts
   */
  constructor(
    model: LanguageModel,
    prompts: readonly Int32Array[],
    length: number,
    passTokens: number,
  ) {
    this.#model = model;
    this.#prompts = prompts;
    this.#passTokens = passTokens;
    this.#cache = openCache(op, model, prompts.length, length);
    const time = Math.max(...prompts.map((prompt) => prompt.length));
    this.#padding = prompts.map((prompt) => time - prompt.length);
  }

  start(): Tensor {
    const rows = this.#prompts.length;
    const time = Math.max(...this.#prompts.map((prompt) => prompt.length));
    const part = Math.max(1, Math.floor(this.#passTokens / rows));
    for (let from = 0; ; from += part) {
      const to = Math.min(time, from + part);
      const ids = new Int32Array(rows * (to - from));
      for (const [row, prompt] of this.#prompts.entries()) {
        const pad = this.#padding[row] as number;
        for (let t = Math.max(from, pad); t < to; t++) {
          ids[row * (to - from) + t - from] = prompt[t - pad] as number;
        }
      }
      const last = scope(() => {
        const hidden = this.#forward(i32(ids, rows, this.#model), from, to);
        return to === time ? slice(hidden, { 1: [to - from - 1, to - from] }) : null;
      });
      if (last) return reshape(last, [rows, last.size / rows]);
    }
  }

  advance(ids: Tensor): Tensor {
    const { position } = this.#cache;
    const rows = ids.size;
    const hidden = this.#forward(ids.view([rows, 1]), position, position + 1);
    return hidden.view([rows, hidden.size / rows]);
  }

  keep(rows: readonly number[]): void {
    const old = this.#cache;
    this.#cache = outsideScopes(() => noGrad(() => cacheRows(this.#model, old, rows)));
    this.#padding = rows.map((row) => this.#padding[row] as number);
    disposeCache(old);
  }

  dispose(): void {
    disposeCache(this.#cache);
  }

  #forward(ids: Tensor, from: number, to: number): Tensor {
    const hidden = hiddenOf(this.#model, ids, this.#cache, this.#context(from, to));
    expectPosition(op, this.#model, this.#cache, to, to - from);
    return hidden;
  }

  /** Attention limits and positions; none without padding, which has a faster kernel. */
  #context(from: number, to: number): Context {
    const padding = this.#padding;
    if (padding.every((pad) => pad === 0)) return {};
    const places = Array.from({ length: to - from }, (_, t) => from + t);
    // A place of padding attends to itself alone.
    const firstKey = padding.flatMap((pad) => places.map((t) => Math.min(t, pad)));
    const positions = padding.flatMap((pad) => places.map((t) => Math.max(0, t - pad)));
    return {
      firstKey: i32(firstKey, padding.length, this.#model),
      positions: i32(positions, padding.length, this.#model),
    };
  }
}

/** Rows of a model without a cache, which reads the whole text anew for each token. */
export class WholeRows implements AnswerRows {
  readonly cached = false;
  readonly #model: LanguageModel;
  #texts: number[][];

  constructor(model: LanguageModel, prompts: readonly Int32Array[]) {
    this.#model = model;
    this.#texts = prompts.map((prompt) => [...prompt]);
  }

  start(): Tensor {
    const texts = this.#texts;
    const time = Math.max(...texts.map((text) => text.length));
    // Padding on the right changes nothing before it, because attention is causal.
    const ids = texts.flatMap((text) => [...text, ...new Array(time - text.length).fill(0)]);
    const hidden = hiddenOf(this.#model, i32(ids, texts.length, this.#model));
    const width = hidden.shape[2] as number;
    const places = texts.map((text, row) => row * time + text.length - 1);
    const table = hidden.view([texts.length * time, width]);
    return noGrad(() => embedding(i32(places, 1, this.#model), table)).view([texts.length, width]);
  }

  advance(_ids: Tensor, tokens: readonly number[] | null): Tensor {
    for (const [row, text] of this.#texts.entries()) text.push((tokens as number[])[row] as number);
    return this.start();
  }

  keep(rows: readonly number[]): void {
    this.#texts = rows.map((row) => this.#texts[row] as number[]);
  }

  dispose(): void {}
}
