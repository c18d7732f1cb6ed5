import {
  argumentError,
  checkFloat,
  checkInteger,
  checkNumber,
  checkOptions,
  checkTensor,
} from "../core/check.js";
import { ShapeError } from "../core/errors.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";

function indices(op: string, name: string, x: Tensor): Tensor {
  if (x.rank === 0) {
    throw new ShapeError(`[${op}] expected at least 1 axis for ${name} but received shape []`);
  }
  return empty(x.shape.slice(0, -1), { dtype: "i32", device: x.device }, op);
}

/**
 * Index of the largest element along the last axis: the first among equals. A NaN counts as the
 * largest.
 * @param x (..., n)
 * @returns (...) i32
 */
export function argmax(x: Tensor): Tensor {
  checkTensor("argmax", "x", x);
  const index = indices("argmax", "x", x);
  native.argmax(x.native, index.native);
  return index;
}

export interface SampleOptions {
  /** Divides the logits; 0 always takes the most likely token. Default: 1. */
  temperature?: number;
  /**
   * Keeps the k most likely tokens; of equally likely ones, the lower ids. Default: 0, all tokens.
   */
  topK?: number;
  /**
   * Of those, keeps the smallest set of most likely tokens that reaches this probability. Default:
   * 1, all of them.
   */
  topP?: number;
  /** Seed of the sequence of random numbers. */
  seed: number;
  /** Position of the first row's number in the sequence; row i uses offset + i. Default: 0. */
  offset?: number;
}

/**
 * Draws a token for each row of logits.
 * @param logits (..., vocabulary) bf16 or f32; -inf for tokens that must not be drawn
 * @returns ids (...) i32
 * @throws NonFiniteError, at the next wait, if a logit is NaN or +inf, or all logits of a row are
 *   -inf
 * @see Holtzman et al. 2019, arXiv 1904.09751 (top-p)
 */
export function sample(logits: Tensor, options: SampleOptions): Tensor {
  checkFloat("sample", "logits", logits);
  if (options === undefined)
    throw argumentError("sample", "an object with a seed", "options", options);
  checkOptions("sample", options, ["temperature", "topK", "topP", "seed", "offset"]);
  const { temperature = 1, topK = 0, topP = 1, seed, offset = 0 } = options;
  checkNumber("sample", "temperature", temperature, { min: 0 });
  checkInteger("sample", "topK", topK, { min: 0 });
  if (!(typeof topP === "number" && topP > 0 && topP <= 1)) {
    throw argumentError("sample", "a number above 0 and at most 1", "topP", topP);
  }
  checkInteger("sample", "seed", seed);
  checkInteger("sample", "offset", offset, { min: 0 });
  const ids = indices("sample", "logits", logits);
  native.sample(logits.native, ids.native, temperature, topK, topP, seed, offset);
  return ids;
}
