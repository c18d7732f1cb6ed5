import { differentiable } from "../core/autograd.js";
import {
  argumentError,
  checkAxes,
  checkBoolean,
  checkFloat,
  checkOptions,
  checkTensor,
} from "../core/check.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";
import { applyBinary, repeatTo, scalarLike } from "./broadcast.js";
import { applyWhere } from "./where.js";

// Reductions over one axis, several axes, or all. Sums combine in a fixed order, so any number of
// threads gives the same bits.

type ReduceKind = "sum" | "mean" | "max" | "min";

/** One axis or several. Default: all axes. Negative axes count from the last. */
export type Axes = number | readonly number[];

/** Axes of a reduction, and whether they stay with length 1. */
export interface ReduceOptions {
  /** Keeps the reduced axes, with size 1. Default: false. */
  keepDims?: boolean;
}

interface ReducedAxes {
  readonly axes: readonly number[];
  /** The shape of x with the reduced axes at size 1. */
  readonly kept: readonly number[];
  /** The shape of the result. */
  readonly shape: readonly number[];
}

function checkReduction(op: string, x: Tensor, axes: unknown, options: unknown): ReducedAxes {
  checkOptions(op, options, ["keepDims"]);
  const { keepDims = false } = (options ?? {}) as ReduceOptions;
  checkBoolean(op, "keepDims", keepDims);
  if (Array.isArray(axes) && axes.length === 0) {
    throw argumentError(op, "at least one axis (leave axes out to reduce all)", "axes", axes);
  }
  // A tensor without axes may be reduced over axis 0 or -1, as in PyTorch.
  const named = axes === undefined ? null : checkAxes(op, "axes", axes, Math.max(1, x.rank));
  const reduced = x.shape.map((_, axis) => axis).filter((axis) => !named || named.includes(axis));
  const kept = x.shape.map((size, axis) => (reduced.includes(axis) ? 1 : size));
  const shape = keepDims ? kept : x.shape.filter((_, axis) => !reduced.includes(axis));
  return { axes: reduced, kept, shape };
}

function apply(kind: ReduceKind, x: Tensor, { axes, shape }: ReducedAxes): Tensor {
  const y = empty(shape, x);
  native.reduce(x.native, y.native, axes, kind);
  return y;
}

/** The sum of the elements along the axes. i32 sums wrap around. */
export function sum(x: Tensor, axes?: Axes, options?: ReduceOptions): Tensor {
  checkTensor("sum", "x", x);
  const reduction = checkReduction("sum", x, axes, options);
  const { shape } = x;
  return differentiable("sum", {
    inputs: [x],
    outputs: [apply("sum", x, reduction)],
    backward: ([dy]) => [repeatTo((dy as Tensor).view(reduction.kept), shape)],
  });
}

/** The mean of the elements along the axes; f32 or bf16. */
export function mean(x: Tensor, axes?: Axes, options?: ReduceOptions): Tensor {
  checkFloat("mean", "x", x);
  const reduction = checkReduction("mean", x, axes, options);
  const { shape } = x;
  const y = apply("mean", x, reduction);
  const count = x.size / y.size;
  return differentiable("mean", {
    inputs: [x],
    outputs: [y],
    backward: ([dy]) => {
      const factor = scalarLike("mean", "count", 1 / count, dy as Tensor, true);
      return [repeatTo(applyBinary("mul", dy as Tensor, factor).view(reduction.kept), shape)];
    },
  });
}

/** The largest element along the axes, or NaN if one is NaN. Ties share the gradient. */
export function max(x: Tensor, axes?: Axes, options?: ReduceOptions): Tensor {
  return extreme("max", x, axes, options);
}

/** The smallest element along the axes, or NaN if one is NaN. Ties share the gradient. */
export function min(x: Tensor, axes?: Axes, options?: ReduceOptions): Tensor {
  return extreme("min", x, axes, options);
}

function extreme(kind: "max" | "min", x: Tensor, axes?: Axes, options?: ReduceOptions): Tensor {
  checkTensor(kind, "x", x);
  const reduction = checkReduction(kind, x, axes, options);
  const y = apply(kind, x, reduction);
  return differentiable(kind, {
    inputs: [x],
    outputs: [y],
    saved: [x, y],
    backward: ([dy], [x, y]) => [shareAmongTies(dy as Tensor, x as Tensor, y as Tensor, reduction)],
  });
}

/**
 * dy / (number of ties) where x is one of the ties, in f32, because bf16 cannot count beyond 256.
 * Elsewhere it is 0, or NaN where the result is NaN. The zeros are selected rather than multiplied,
 * because 0 times an infinite dy would be NaN.
 */
function shareAmongTies(dy: Tensor, x: Tensor, y: Tensor, { axes, kept }: ReducedAxes): Tensor {
  const { device } = x;
  const ties = applyBinary("eq", x, y.view(kept));
  const mask = empty(x.shape, { dtype: "f32", device });
  native.cast(ties.native, mask.native);
  const count = empty(kept, mask);
  native.reduce(mask.native, count.native, axes, "sum");
  const gradient = empty(kept, mask);
  native.cast(dy.view(kept).native, gradient.native);
  const rest = empty(kept, mask);
  native.cast(y.view(kept).native, rest.native);
  const none = applyWhere(
    applyBinary("eq", rest, rest),
    scalarLike("backward", "0", 0, rest),
    rest,
  );
  const shared = applyWhere(ties, applyBinary("div", gradient, count), none);
  if (x.dtype === "f32") return shared;
  const dx = empty(x.shape, x);
  native.cast(shared.native, dx.native);
  return dx;
}
