import type { GradientTarget } from "../core/autograd.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";

/**
 * The gradient of a weight whose kernel adds to an f32 buffer: straight into the leaf's own buffer where it has one, so
 * that accumulating micro-batches costs nothing, else into a fresh one.
 * @param add runs the kernel on the buffer
 * @returns what backward returns for that input: null if the gradient is where it belongs
 */
export function weightGradient(
  weight: Tensor,
  target: GradientTarget | null,
  add: (buffer: Tensor) => void,
): Tensor | null {
  const buffer = target?.tensor ?? empty(weight.shape, { dtype: "f32", device: weight.device });
  if (!target?.accumulate) native.fill(buffer.native, 0);
  add(buffer);
  if (target) return null;
  if (weight.dtype === "f32") return buffer;
  const gradient = empty(weight.shape, weight);
  native.cast(buffer.native, gradient.native);
  return gradient;
}
