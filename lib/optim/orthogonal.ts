import { native } from "../core/native.js";
import { scope } from "../core/scope.js";
import { empty, type Tensor } from "../core/tensor.js";
import { maximum } from "../ops/binary.js";
import { reciprocal, sqrt } from "../ops/unary.js";

/** Coefficients of Muon's iteration: steep at 0, and between 0.7 and 1.2 after five of them. */
const [linear, cubic, quintic] = [3.4445, -4.775, 2.0315];

/** Iterations of an update. */
export const newtonSchulzSteps = 5;

/** Smallest norm that a matrix is divided by. */
const leastNorm = 1e-7;

/**
 * Approximates the nearest matrix with orthogonal rows or columns: the singular values of the result
 * lie near 1. Computes in the dtype of x. The products do not depend on timing, so processes that
 * compute the same matrix get equal bits.
 * @param x (rows, columns) f32 or bf16
 * @returns (rows, columns), which belongs to the current scope; 0 for a matrix of zeros
 * @see Jordan et al. 2024, Muon: https://kellerjordan.github.io/posts/muon/
 */
export function orthogonal(x: Tensor): Tensor {
  const [rows, columns] = x.shape as [number, number];
  const wide = rows <= columns;
  const side = Math.min(rows, columns);
  let y = scaled(x);
  for (let step = 0; step < newtonSchulzSteps; step++) {
    // y <- linear y + (cubic g + quintic g²) y with g = y yᵀ; for a tall y, products from the right.
    const [gram, square] = [empty([side, side], y), empty([side, side], y)];
    native.gemm(y.native, y.native, gram.native, !wide, wide, true);
    native.gemm(gram.native, gram.native, square.native, false, false, true);
    native.scaleAdd(square.native, gram.native, quintic, cubic);
    const next = empty([rows, columns], y);
    const [left, right] = wide ? [gram, y] : [y, gram];
    native.gemm(left.native, right.native, next.native, false, false, true);
    native.scaleAdd(y.native, next.native, linear, 1);
    for (const tensor of [gram, square, y]) tensor.dispose();
    y = next;
  }
  return y;
}

/** x / max(‖x‖, leastNorm): no singular value is above 1. */
function scaled(x: Tensor): Tensor {
  const y = empty(x.shape, x);
  native.fill(y.native, 0);
  scope(() => {
    const squares = empty([1], { device: x.device });
    native.sumOfSquares(x.native, squares.native);
    const factor = reciprocal(maximum(sqrt(squares), leastNorm));
    native.accumulateScaled(x.native, factor.native, y.native);
  });
  return y;
}

/** Floating-point operations of `orthogonal`. */
export function orthogonalFlops(rows: number, columns: number): number {
  const [short, long] = [Math.min(rows, columns), Math.max(rows, columns)];
  return newtonSchulzSteps * (4 * short * short * long + 2 * short ** 3);
}
