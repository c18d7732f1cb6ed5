/** The tensors of weight files that belong to a model. */
import { CheckpointError } from "../core/errors.js";
import type { LanguageModel } from "../model/language-model.js";
import { matchTensors } from "./load.js";
import type { FileDtype } from "./native-io.js";
import type { StoredTensor, StoredTensors } from "./safetensors.js";

const readableDtypes: readonly FileDtype[] = ["F32", "BF16", "F16", "F64"];

/**
 * The stored tensors of a model's weights, by the names of its files. Second copies of a weight are
 * left out, and stand in for it where they alone are stored.
 * @param source  named in the error
 * @param foreign whether another program may have written the tensors. Buffers that follow from the
 *   shape are then left out.
 * @throws CheckpointError naming tensors that are missing, unexpected, of another shape or dtype, or
 *   a copy that differs from its weight
 */
export async function modelTensors(
  { files }: LanguageModel,
  { tensors: stored }: Pick<StoredTensors, "tensors">,
  source: string,
  foreign: boolean,
): Promise<Map<string, StoredTensor>> {
  const tensors = new Map<string, StoredTensor>();
  const copies: { copy: StoredTensor; name: string }[] = [];
  for (const [name, tensor] of stored) {
    const original = files.originalOf(name);
    if (original === null) {
      if (!(foreign && files.isDerived(name, tensor))) tensors.set(name, tensor);
    } else if (stored.has(original)) copies.push({ copy: tensor, name: original });
    else tensors.set(original, { ...tensor, name: original });
  }
  const expected = files.tensors.map(({ name, shape }) => ({
    name,
    shape,
    dtypes: readableDtypes,
  }));
  matchTensors(source, { tensors }, expected);
  for (const { copy, name } of copies) {
    if (await areEqual(copy, tensors.get(name) as StoredTensor)) continue;
    throw new CheckpointError(
      `${source}: ${copy.name} differs from ${name}, but config.json has tie_word_embeddings true, which ` +
        `makes them one. Set tie_word_embeddings to false to use both, or remove ${copy.name}`,
    );
  }
  return tensors;
}

async function areEqual(a: StoredTensor, b: StoredTensor): Promise<boolean> {
  if (a.dtype !== b.dtype || a.shape.join() !== b.shape.join()) return false;
  const [one, other] = [await a.readBytes(), await b.readBytes()];
  return Buffer.compare(one, other) === 0;
}
