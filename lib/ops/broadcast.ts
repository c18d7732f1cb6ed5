import { differentiable } from "../core/autograd.js";
import {
  argumentError,
  broadcastShapes,
  checkSameDevice,
  checkSameDType,
  checkShapeArgument,
  checkTensor,
  shapeText,
} from "../core/check.js";
import { full } from "../core/create.js";
import type { Device } from "../core/device.js";
import { ShapeError } from "../core/errors.js";
import { type DType, native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";

/** Operand of arithmetic: a tensor or a plain number. */
export type Operand = Tensor | number;

export const sameShape = (a: readonly number[], b: readonly number[]): boolean =>
  a.length === b.length && a.every((size, axis) => size === b[axis]);

/**
 * Converts a plain number to a tensor without axes, of its partner's dtype. With `wide`, it stays
 * f32 next to a bf16 partner, which the binary kernel accepts, so that x · 0.1 does not first round
 * 0.1 to bf16. The caller disposes it.
 * @internal
 */
export function scalarLike(
  op: string,
  name: string,
  value: number,
  like: { dtype: DType; device: Device },
  wide = false,
): Tensor {
  if (like.dtype === "i32" && (value | 0) !== value) {
    throw argumentError(op, "a whole number of 32 bits (the tensor is i32)", name, value);
  }
  const dtype = wide && like.dtype === "bf16" ? "f32" : like.dtype;
  return full([], value, { dtype, device: like.device });
}

/**
 * Sums over the axes along which `shape` was broadcast to x's shape: the gradient of a broadcast.
 * Without such axes, it returns x itself.
 * @internal
 */
export function sumTo(x: Tensor, shape: readonly number[]): Tensor {
  if (sameShape(x.shape, shape)) return x;
  const lead = x.rank - shape.length;
  const isReduced = (axis: number) =>
    axis < lead || (shape[axis - lead] === 1 && x.shape[axis] !== 1);
  const axes = x.shape.map((_, axis) => axis).filter(isReduced);
  const kept = empty(
    x.shape.map((size, axis) => (isReduced(axis) ? 1 : size)),
    x,
  );
  native.reduce(x.native, kept.native, axes, "sum");
  const result = kept.view(shape);
  kept.dispose();
  return result;
}

/**
 * Repeats x to a larger shape, outside of the tape.
 * @internal
 */
export function repeatTo(x: Tensor, shape: readonly number[]): Tensor {
  const y = empty(shape, x);
  // max(x, x) is x, bit for bit and in every dtype, and the binary kernel does the broadcasting.
  native.binary(x.native, x.native, y.native, "maximum");
  return y;
}

/**
 * Repeats x along axes of size 1 and new leading axes, by NumPy's rule. The result is a copy, not a
 * view.
 * @param shape the same shape or a larger one: `broadcastTo(x, [4, 3])` for x (3) or (1, 3)
 * @throws ShapeError if x does not broadcast to it
 */
export function broadcastTo(x: Tensor, shape: readonly number[]): Tensor {
  checkTensor("broadcastTo", "x", x);
  const target = checkShapeArgument("broadcastTo", "shape", shape);
  const lead = target.length - x.rank;
  if (lead < 0 || x.shape.some((size, axis) => size !== 1 && size !== target[lead + axis])) {
    throw new ShapeError(
      `[broadcastTo] shape ${shapeText(x.shape)} does not broadcast to ${shapeText(target)}: ` +
        "sizes must be equal or 1, aligned at the last axis",
    );
  }
  const { shape: original } = x;
  return differentiable("broadcastTo", {
    inputs: [x],
    outputs: [repeatTo(x, target)],
    backward: ([dy]) => [sumTo(dy as Tensor, original)],
  });
}

/**
 * Operands of an operation as tensors. `release` frees those made of plain numbers, after the
 * native call.
 */
interface Operands {
  readonly a: Tensor;
  readonly b: Tensor;
  release(): void;
}

/**
 * Checks the operands of an operation: at least one tensor, a single dtype, a single device.
 * @param check check of each tensor: `checkTensor` or `checkFloat`
 * @param wide whether numbers stay f32 next to bf16
 * @internal
 */
export function checkOperands(
  op: string,
  a: unknown,
  b: unknown,
  check: (op: string, name: string, value: unknown) => void,
  wide = false,
): Operands {
  if (typeof a === "number") {
    if (typeof b === "number") throw argumentError(op, "a tensor", "a or b", a);
    check(op, "b", b);
    const left = scalarLike(op, "a", a, b as Tensor, wide);
    return { a: left, b: b as Tensor, release: () => left.dispose() };
  }
  check(op, "a", a);
  const left = a as Tensor;
  if (typeof b === "number") {
    const right = scalarLike(op, "b", b, left, wide);
    return { a: left, b: right, release: () => right.dispose() };
  }
  check(op, "b", b);
  const right = b as Tensor;
  checkSameDevice(op, left, right);
  checkSameDType(op, left, right);
  return { a: left, b: right, release: () => {} };
}

/** Kinds of the binary kernel. */
export type BinaryKind = "add" | "sub" | "mul" | "div" | "minimum" | "maximum" | "pow";
export type ComparisonKind = "eq" | "ne" | "lt" | "le" | "gt" | "ge";

/**
 * a op b outside of the tape, for checked operands.
 * @internal
 */
export function applyBinary(kind: BinaryKind | ComparisonKind, a: Tensor, b: Tensor): Tensor {
  const shape = broadcastShapes(kind, a.shape, b.shape);
  const compares = kind.length === 2;
  const wider = a.dtype === "bf16" ? a : b; // an f32 number with a bf16 tensor gives bf16
  const y = empty(shape, { dtype: compares ? "i32" : wider.dtype, device: a.device });
  native.binary(a.native, b.native, y.native, kind);
  return y;
}
