import { differentiable } from "../core/autograd.js";
import { checkChoice, checkTensor } from "../core/check.js";
import { native } from "../core/native.js";
import { type DType, empty, type Tensor } from "../core/tensor.js";

/**
 * Converts to another dtype. With the same dtype, the result shares x's memory.
 *
 * Conversion to bf16 rounds to nearest even. A float becomes i32 by dropping its fraction; NaN
 * becomes 0, and values beyond 32 bits become the nearest end of the range. Differentiable between
 * f32 and bf16; i32 has no gradient.
 * @throws ArgumentError if dtype is not "f32", "bf16" or "i32"
 */
export function cast(x: Tensor, dtype: DType): Tensor {
  checkTensor("cast", "x", x);
  checkChoice("cast", "dtype", dtype, ["f32", "bf16", "i32"]);
  if (dtype === x.dtype) {
    const same = x.view(x.shape);
    return differentiable("cast", {
      inputs: [x],
      outputs: [same],
      backward: ([dy]) => [dy as Tensor],
    });
  }
  const y = empty(x.shape, { dtype, device: x.device }, "cast");
  native.cast(x.native, y.native);
  if (dtype === "i32" || x.dtype === "i32") return y;
  const { dtype: from } = x;
  return differentiable("cast", {
    inputs: [x],
    outputs: [y],
    backward: ([dy]) => {
      const gradient = dy as Tensor;
      const dx = empty(gradient.shape, { dtype: from, device: gradient.device });
      native.cast(gradient.native, dx.native);
      return [dx];
    },
  });
}
