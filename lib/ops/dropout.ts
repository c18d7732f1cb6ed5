import { differentiable } from "../core/autograd.js";
import { argumentError, checkFloat, checkInteger, checkOptions } from "../core/check.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";
import { mul } from "./binary.js";
import { cast } from "./cast.js";

/** Options that decide which elements dropout drops. */
export interface DropoutOptions {
  /** Probability of an element to become 0, from 0 to below 1. */
  rate: number;
  /** Seed of the random numbers. Equal seeds drop equal elements, on every device. */
  seed: number;
  /** Place of the first element in the seed's sequence. Default: 0. */
  offset?: number;
}

/**
 * Sets elements to 0 at random, and scales the others by 1 / (1 - rate), as PyTorch's dropout does
 * in training. Element i is dropped by seed and offset + i alone. The gradient is 0 where the
 * element was dropped, and scaled elsewhere; nothing is kept for it.
 * @param x f32 or bf16
 * @returns y of the shape and dtype of x
 * @throws ArgumentError for a rate that is no probability below 1
 * @see Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting"
 */
export function dropout(x: Tensor, options: DropoutOptions): Tensor {
  checkFloat("dropout", "x", x);
  if (options === undefined) {
    throw argumentError("dropout", "an object with rate and seed", "options", options);
  }
  checkOptions("dropout", options, ["rate", "seed", "offset"]);
  const { rate, seed, offset = 0 } = options;
  if (!(typeof rate === "number" && rate >= 0 && rate < 1)) {
    throw argumentError("dropout", "a number from 0 to below 1", "rate", rate);
  }
  checkInteger("dropout", "seed", seed);
  checkInteger("dropout", "offset", offset, { min: 0 });
  const y = empty(x.shape, x);
  native.dropout(x.native, y.native, rate, seed, offset);
  return differentiable("dropout", {
    inputs: [x],
    outputs: [y],
    backward: ([dy]) => {
      const dx = empty((dy as Tensor).shape, dy as Tensor);
      native.dropout((dy as Tensor).native, dx.native, rate, seed, offset);
      return [dx];
    },
  });
}

/**
 * `dropout` composed of plain operations: its definition, and the oracle of its test.
 * @param x    (...)
 * @param kept f32 (...): 1 where the element is kept, else 0
 * @returns (...)
 */
export function composedDropout(x: Tensor, kept: Tensor, rate: number): Tensor {
  return mul(x, cast(mul(kept, 1 / (1 - rate)), x.dtype));
}
