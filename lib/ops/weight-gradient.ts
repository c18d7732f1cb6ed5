import type { GradientTarget } from "../core/autograd.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";

/**
 * Computes a weight's gradient with a kernel that adds to an f32 buffer. If the leaf has such a
 * buffer, the kernel adds directly to it, so accumulation over micro-batches costs nothing.
 * Otherwise the kernel adds to a new buffer.
 * @param add runs the kernel on the buffer
 * @returns the result of backward for that input: null if the gradient is already in the leaf's
 *   buffer
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
