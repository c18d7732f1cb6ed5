import { checkArray, checkInteger, checkObject, describe } from "../core/check.js";
import { tensor } from "../core/create.js";
import { ArgumentError } from "../core/errors.js";
import { outsideScopes } from "../core/scope.js";
import type { Cache, LanguageModel } from "../model/language-model.js";
import { embedding } from "../ops/index.js";

/**
 * A cache that outlives the scope of one token.
 * @throws ArgumentError if the model has no cache, or makes none of the right form
 */
export function openCache(op: string, model: LanguageModel, rows: number, length: number): Cache {
  const cache = outsideScopes(() => model.createCache(rows, length));
  const name = `the result of ${model.constructor.name}.createCache`;
  checkObject(op, name, cache, "a cache: { layers, position }");
  checkArray(op, `layers of ${name}`, cache.layers, "an array of tensors");
  checkInteger(op, `position of ${name}`, cache.position, { min: 0, max: 0 });
  return cache;
}

/**
 * @param end the position after `added` tokens
 * @throws ArgumentError if the model has not added them to the cache
 */
export function expectPosition(
  op: string,
  model: LanguageModel,
  cache: Cache,
  end: number,
  added: number,
): void {
  if (cache.position === end) return;
  throw new ArgumentError(
    `[${op}] expected ${model.constructor.name}.hidden to add ${added} tokens to its cache, ` +
      `so that position is ${end}, but position is ${describe(cache.position)}`,
  );
}

/**
 * A cache whose sequence i is sequence rows[i] of another. Copies whole rows at memory's speed. It
 * belongs to the current scope.
 */
export function cacheRows(model: LanguageModel, cache: Cache, rows: readonly number[]): Cache {
  const index = tensor(Int32Array.from(rows), { device: model.device });
  const layers = cache.layers.map((layer) => {
    const [count, ...shape] = layer.shape as [number, ...number[]];
    const copies = embedding(index, layer.view([count, layer.size / count]));
    return copies.view([rows.length, ...shape]);
  });
  index.dispose();
  return { layers, position: cache.position };
}

export function disposeCache(cache: Cache | null): void {
  for (const layer of cache?.layers ?? []) layer.dispose();
}
