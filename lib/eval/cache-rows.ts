import { tensor } from "../core/create.js";
import type { Cache, LanguageModel } from "../model/language-model.js";
import { embedding } from "../ops/index.js";

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
