import { differentiable } from "../core/autograd.js";
import { checkDType, checkFloat, checkRank, checkSameDevice } from "../core/check.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";
import { broadcastTo } from "./broadcast.js";
import { gather } from "./gather.js";
import { reshape } from "./shape.js";
import { weightGradient } from "./weight-gradient.js";

/**
 * Looks up rows of a table: y[...] = weight[ids[...]].
 * @param ids    (...) i32, at most 7 axes
 * @param weight (vocabulary, hidden) bf16 or f32
 * @returns y (..., hidden) with the dtype of weight
 * @throws NativeError `ERR_TOKEN_ID`, at the next wait, if an id is not in 0..vocabulary-1; the
 *   message names its position
 */
export function embedding(ids: Tensor, weight: Tensor): Tensor {
  checkDType("embedding", "ids", ids, "i32");
  checkFloat("embedding", "weight", weight);
  checkRank("embedding", "ids", ids, 0, 1, 2, 3, 4, 5, 6, 7);
  checkRank("embedding", "weight", weight, 2);
  checkSameDevice("embedding", ids, weight);
  const y = empty([...ids.shape, weight.shape[1] as number], weight);
  native.embeddingForward(ids.native, weight.native, y.native);
  return differentiable("embedding", {
    inputs: [ids, weight],
    outputs: [y],
    // Backward needs only the table's shape and dtype, not its values.
    saved: [ids],
    backward: ([dy], [ids], into, needs) => [
      null,
      needs(1)
        ? weightGradient(weight, into(1), (buffer) =>
            native.embeddingBackward((ids as Tensor).native, (dy as Tensor).native, buffer.native),
          )
        : null,
    ],
  });
}

/**
 * `embedding` composed of plain operations: its definition, and the oracle of its test.
 * @param ids    (...) i32
 * @param weight (vocabulary, hidden)
 * @returns (..., hidden)
 */
export function composedEmbedding(ids: Tensor, weight: Tensor): Tensor {
  const hidden = weight.shape[1] as number;
  const rows = broadcastTo(reshape(ids, [-1, 1]), [ids.size, hidden]); // each id once per column
  return reshape(gather(weight, rows, 0), [...ids.shape, hidden]);
}
