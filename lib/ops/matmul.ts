import { differentiable } from "../core/autograd.js";
import {
  broadcastShapes,
  checkFloat,
  checkSameDevice,
  checkSameDType,
  shapeText,
} from "../core/check.js";
import { ShapeError } from "../core/errors.js";
import { native } from "../core/native.js";
import { scope } from "../core/scope.js";
import { empty, type Tensor } from "../core/tensor.js";
import { repeatTo, sameShape, sumTo } from "./broadcast.js";

interface Shaped {
  readonly shape: readonly number[];
}
const batchOf = ({ shape }: Shaped): number[] => shape.slice(0, -2);
const matrixOf = ({ shape }: Shaped): [number, number] => shape.slice(-2) as [number, number];

/**
 * op(a) · op(b) for matrices with equal batch axes. If one of them has no batch axes, the kernel
 * repeats it.
 */
function product(a: Tensor, b: Tensor, transposeA: boolean, transposeB: boolean): Tensor {
  const rows = matrixOf(a)[transposeA ? 1 : 0];
  const columns = matrixOf(b)[transposeB ? 0 : 1];
  const batch = a.rank > b.rank ? batchOf(a) : batchOf(b);
  const c = empty([...batch, rows, columns], a);
  native.gemm(a.native, b.native, c.native, transposeA, transposeB, false);
  return c;
}

/**
 * Broadcasts x to the batch axes of the product. A plain matrix stays as it is, because the kernel
 * repeats it without a copy.
 */
function withBatch(x: Tensor, batch: readonly number[]): Tensor {
  if (sameShape(batchOf(x), batch)) return x;
  if (batchOf(x).every((size) => size === 1)) return x.view(matrixOf(x));
  return repeatTo(x, [...batch, ...matrixOf(x)]);
}

/**
 * Shape of a as a matrix; a vector becomes a row, by NumPy's rule. Below, a vector b becomes a
 * column.
 */
const leftShape = (a: Tensor): readonly number[] => (a.rank === 1 ? [1, a.size] : a.shape);
const rightShape = (b: Tensor): readonly number[] => (b.rank === 1 ? [b.size, 1] : b.shape);
const asLeft = (a: Tensor): Tensor => a.view(leftShape(a));
const asRight = (b: Tensor): Tensor => b.view(rightShape(b));

/**
 * Matrix product over the last two axes. Leading axes are batch axes and broadcast, as in NumPy. A
 * vector on the left is a row, on the right a column, and its axis is dropped from the result.
 * @param a (..., m, k) or (k), f32 or bf16
 * @param b (..., k, n) or (k), of a's dtype
 * @returns (..., m, n); sums are f32
 * @throws ShapeError if the inner sizes differ or the batch axes do not broadcast
 */
export function matmul(a: Tensor, b: Tensor): Tensor {
  checkFloat("matmul", "a", a);
  checkFloat("matmul", "b", b);
  checkSameDevice("matmul", a, b);
  checkSameDType("matmul", a, b);
  if (a.rank === 0 || b.rank === 0) {
    throw new ShapeError(
      `[matmul] expected at least 1 axis for a and b but received shapes ${shapeText(a.shape)} and ${shapeText(b.shape)}`,
    );
  }
  const left = { shape: leftShape(a) };
  const right = { shape: rightShape(b) };
  if (matrixOf(left)[1] !== matrixOf(right)[0]) {
    throw new ShapeError(
      `[matmul] shapes ${shapeText(a.shape)} and ${shapeText(b.shape)} do not multiply: ` +
        `inner sizes ${matrixOf(left)[1]} and ${matrixOf(right)[0]} differ`,
    );
  }
  const batch = broadcastShapes("matmul", batchOf(left), batchOf(right));
  const [rows, columns] = [matrixOf(left)[0], matrixOf(right)[1]];
  const shape = [...batch, ...(a.rank === 1 ? [] : [rows]), ...(b.rank === 1 ? [] : [columns])];
  const y = scope(() =>
    product(withBatch(asLeft(a), batch), withBatch(asRight(b), batch), false, false).view(shape),
  );
  return differentiable("matmul", {
    inputs: [a, b],
    outputs: [y],
    saved: [a, b],
    backward: ([dy], [a, b], _into, needs) => {
      const [left, right] = [asLeft(a as Tensor), asRight(b as Tensor)];
      const gradient = (dy as Tensor).view([...batch, rows, columns]);
      return [
        needs(0)
          ? leftGradient(gradient, withBatch(right, batch), left).view((a as Tensor).shape)
          : null,
        needs(1)
          ? rightGradient(withBatch(left, batch), gradient, right).view((b as Tensor).shape)
          : null,
      ];
    },
  });
}

/** Gradient of a: dy · bᵀ, summed over the batch axes that a lacks. */
const leftGradient = (dy: Tensor, b: Tensor, a: Tensor): Tensor =>
  sumTo(product(dy, b, false, true), a.shape);

/**
 * Gradient of b: aᵀ · dy, summed over the batch axes that b lacks. For a plain matrix b it is a
 * single product over all rows.
 */
function rightGradient(a: Tensor, dy: Tensor, b: Tensor): Tensor {
  if (batchOf(b).every((size) => size === 1) && sameShape(batchOf(a), batchOf(dy))) {
    const c = empty(matrixOf(b), b);
    native.gemm(a.native, dy.native, c.native, true, false, false);
    return c.view(b.shape);
  }
  return sumTo(product(a, dy, true, false), b.shape);
}
