import { broadcastShapes, checkTensor } from "../core/check.js";
import type { Tensor } from "../core/tensor.js";
import { applyBinary, type ComparisonKind, checkOperands, type Operand } from "./broadcast.js";

// Comparisons of two tensors, or of a tensor and a plain number (rounded to the tensor's dtype),
// with NumPy's broadcasting. The result is i32: 1 where the comparison holds, otherwise 0. It has
// no gradient. Of comparisons with NaN, only `ne` holds.

function compare(kind: ComparisonKind, first: Operand, second: Operand): Tensor {
  const { a, b, release } = checkOperands(kind, first, second, checkTensor);
  broadcastShapes(kind, a.shape, b.shape);
  const y = applyBinary(kind, a, b);
  y.op = kind;
  release();
  return y;
}

/** 1 where a equals b. */
export function eq(a: Operand, b: Operand): Tensor {
  return compare("eq", a, b);
}

/** 1 where a does not equal b. */
export function ne(a: Operand, b: Operand): Tensor {
  return compare("ne", a, b);
}

/** 1 where a is less than b. */
export function lt(a: Operand, b: Operand): Tensor {
  return compare("lt", a, b);
}

/** 1 where a is at most b. */
export function le(a: Operand, b: Operand): Tensor {
  return compare("le", a, b);
}

/** 1 where a is greater than b. */
export function gt(a: Operand, b: Operand): Tensor {
  return compare("gt", a, b);
}

/** 1 where a is at least b. */
export function ge(a: Operand, b: Operand): Tensor {
  return compare("ge", a, b);
}
