import { NonFiniteError } from "../core/errors.js";
import type { LanguageModel } from "./language-model.js";

/** A tensor's name in the files, and the number of its values that are NaN or infinite. */
interface NonFiniteTensor {
  name: string;
  count: number;
  size: number;
}

/** Reads all weights, one parameter after the other, and finds the tensors with NaN or infinity. */
async function nonFiniteTensors(model: LanguageModel): Promise<NonFiniteTensor[]> {
  const found: NonFiniteTensor[] = [];
  const values = new Map<object, ArrayLike<number>>();
  for (const { name, shape, parameter, offset } of model.files.tensors) {
    if (!values.has(parameter)) {
      values.clear();
      values.set(parameter, await parameter.tensor.toArray());
    }
    const all = values.get(parameter) as ArrayLike<number>;
    const size = shape.reduce((product, extent) => product * extent, 1);
    let count = 0;
    for (let i = offset; i < offset + size; i++) if (!Number.isFinite(all[i])) count++;
    if (count > 0) found.push({ name, count, size });
  }
  return found;
}

/**
 * Rethrows an error of generation. For NaN or infinite logits, the new error names the weights that
 * cause them.
 * @throws NonFiniteError naming the tensors, or saying that all weights are finite
 */
export async function explainNonFinite(model: LanguageModel, error: unknown): Promise<never> {
  // Sharded weights can only be gathered by all processes together. An error in one process cannot
  // start that.
  if (!(error instanceof NonFiniteError) || model.store.parallel) throw error;
  const broken = await nonFiniteTensors(model);
  const named = broken.slice(0, 3).map(({ name, count, size }) => `${name} (${count} of ${size})`);
  if (broken.length > named.length) named.push(`${broken.length - named.length} more`);
  const cause = broken.length
    ? `the model has weights that are NaN or infinite: ${named.join(", ")}`
    : "all weights are finite, but too large for what is computed from them";
  throw new NonFiniteError(`[generate] ${cause}; ${error.message}`, {
    cause: error,
    tensors: broken.map(({ name }) => name),
  });
}
