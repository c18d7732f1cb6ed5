import { differentiable } from "../core/autograd.js";
import {
  argumentError,
  checkAxes,
  checkAxis,
  checkIntegers,
  checkTensor,
  maxRank,
  shapeText,
} from "../core/check.js";
import { ShapeError } from "../core/errors.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";

// Changes of shape and of the order of axes. Tensors are contiguous, so a new shape is a view of
// the same memory and costs nothing, while a new order of axes is a copy.

/** A view of x with another shape of as many elements. */
function viewed(op: string, x: Tensor, shape: readonly number[]): Tensor {
  const { shape: original } = x;
  return differentiable(op, {
    inputs: [x],
    outputs: [x.view(shape)],
    backward: ([dy]) => [(dy as Tensor).view(original)],
  });
}

/**
 * The elements of x, in row-major order, with another shape. The result shares the memory of x.
 * @param shape one size may be -1, and is then inferred
 * @throws ShapeError if the numbers of elements differ
 */
export function reshape(x: Tensor, shape: readonly number[]): Tensor {
  checkTensor("reshape", "x", x);
  const what = `an array of at most ${maxRank} positive integers, one of which may be -1`;
  const target = checkIntegers("reshape", "shape", shape, what);
  const open = target.indexOf(-1);
  const valid = target.every((size, axis) => size > 0 || axis === open);
  if (!valid || target.length > maxRank) throw argumentError("reshape", what, "shape", target);
  const known = target.reduce(
    (product, size, axis) => (axis === open ? product : product * size),
    1,
  );
  if (open >= 0 && x.size % known === 0) target[open] = x.size / known;
  else if (open >= 0 || known !== x.size) {
    throw new ShapeError(
      `[reshape] shape ${shapeText(x.shape)} has ${x.size} elements and cannot become ${shapeText(target)}`,
    );
  }
  return viewed("reshape", x, target);
}

/**
 * x without the given axes of size 1, or without all axes of size 1. Given axes of another size
 * stay, as in PyTorch.
 */
export function squeeze(x: Tensor, axes?: number | readonly number[]): Tensor {
  checkTensor("squeeze", "x", x);
  const named = axes === undefined ? null : checkAxes("squeeze", "axes", axes, Math.max(1, x.rank));
  const shape = x.shape.filter((size, axis) => size !== 1 || (named && !named.includes(axis)));
  return viewed("squeeze", x, shape);
}

/** x with a new axis of size 1 before axis `axis` (`x.rank` or -1: at the end). */
export function unsqueeze(x: Tensor, axis: number): Tensor {
  checkTensor("unsqueeze", "x", x);
  if (x.rank === maxRank) {
    throw new ShapeError(
      `[unsqueeze] ${shapeText(x.shape)} has ${maxRank} axes already, the most there can be`,
    );
  }
  const position = checkAxis("unsqueeze", "axis", axis, x.rank + 1);
  return viewed("unsqueeze", x, x.shape.toSpliced(position, 0, 1));
}

/**
 * x with its axes in another order: axis i of the result is axis `permutation[i]` of x.
 * @param permutation every axis once; negative ones count from the last
 */
export function permute(x: Tensor, permutation: readonly number[]): Tensor {
  checkTensor("permute", "x", x);
  const what = `each of the ${x.rank} axes once`;
  const given = checkIntegers("permute", "permutation", permutation, what);
  if (given.length !== x.rank) throw argumentError("permute", what, "permutation", given);
  const order = given.map((axis) => checkAxis("permute", "permutation", axis, x.rank));
  if (new Set(order).size !== order.length)
    throw argumentError("permute", what, "permutation", given);
  return permuted("permute", x, order);
}

/** x with two axes exchanged. Default: the last two. */
export function transpose(x: Tensor, axis1 = -2, axis2 = -1): Tensor {
  checkTensor("transpose", "x", x);
  const first = checkAxis("transpose", "axis1", axis1, x.rank);
  const second = checkAxis("transpose", "axis2", axis2, x.rank);
  const order = x.shape.map((_, axis) =>
    axis === first ? second : axis === second ? first : axis,
  );
  return permuted("transpose", x, order);
}

function permuted(op: string, x: Tensor, order: readonly number[]): Tensor {
  const shape = order.map((axis) => x.shape[axis] as number);
  // If only axes of size 1 move, the elements keep their order.
  const moving = order.filter((axis) => x.shape[axis] !== 1);
  if (moving.every((axis, i) => i === 0 || axis > (moving[i - 1] as number)))
    return viewed(op, x, shape);
  const inverse = order.map((_, axis) => order.indexOf(axis));
  const apply = (from: Tensor, to: readonly number[], axes: readonly number[]): Tensor => {
    const y = empty(to, from);
    native.permute(from.native, y.native, axes);
    return y;
  };
  const { shape: original } = x;
  return differentiable(op, {
    inputs: [x],
    outputs: [apply(x, shape, order)],
    backward: ([dy]) => [apply(dy as Tensor, original, inverse)],
  });
}
