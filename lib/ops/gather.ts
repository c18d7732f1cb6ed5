import { differentiable } from "../core/autograd.js";
import { checkAxis, checkDType, checkSameDevice, checkTensor, shapeText } from "../core/check.js";
import { zeros } from "../core/create.js";
import { ShapeError } from "../core/errors.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";

/**
 * Picks elements along an axis, like PyTorch's gather: y[.., i, ..] = x[.., index[.., i, ..], ..].
 * The gradients of an element picked several times add up in a fixed order.
 * @param index i32, with as many axes as x and no longer than x along the other axes. Its values
 *   are checked on the device: a value outside of x fails at the next wait, and nothing is read or
 *   written
 * @param axis axis of x that index points into; negative axes count from the last
 * @returns the elements, in the shape of index
 */
export function gather(x: Tensor, index: Tensor, axis: number): Tensor {
  checkTensor("gather", "x", x);
  checkDType("gather", "index", index, "i32");
  checkSameDevice("gather", x, index);
  const along = checkAxis("gather", "axis", axis, Math.max(1, x.rank));
  const fits =
    index.rank === x.rank &&
    index.shape.every((size, other) => other === along || size <= (x.shape[other] as number));
  if (!fits) {
    throw new ShapeError(
      `[gather] expected index with as many axes as x ${shapeText(x.shape)}, and no longer but along axis ${along}, ` +
        `but received ${shapeText(index.shape)}`,
    );
  }
  // A tensor without axes counts as one element along axis 0.
  const raise = (tensor: Tensor) => tensor.view(tensor.rank === 0 ? [1] : tensor.shape);
  const source = raise(x);
  const positions = raise(index);
  const y = empty(index.shape, x);
  const target = raise(y);
  native.gather(source.native, positions.native, target.native, along);
  for (const view of [source, positions, target]) view.dispose();
  const { shape, dtype, device } = x;
  return differentiable("gather", {
    inputs: [x],
    outputs: [y],
    saved: [index],
    backward: ([dy], [index]) => {
      const sum = zeros(shape, { device }); // f32: bf16 would lose small gradients to large sums
      native.scatterAdd(
        raise(dy as Tensor).native,
        raise(index as Tensor).native,
        raise(sum).native,
        along,
      );
      if (dtype === "f32") return [sum];
      const dx = empty(shape, { dtype, device });
      native.cast(sum.native, dx.native);
      return [dx];
    },
  });
}
