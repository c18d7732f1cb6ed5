import { differentiable } from "../core/autograd.js";
import { broadcastShapes, checkFloat, checkTensor } from "../core/check.js";
import type { Tensor } from "../core/tensor.js";
import {
  applyBinary,
  type BinaryKind,
  checkOperands,
  type Operand,
  scalarLike,
  sumTo,
} from "./broadcast.js";
import { applyUnary, square } from "./unary.js";
import { applyWhere } from "./where.js";

// Arithmetic of two tensors, or of a tensor and a plain number, with NumPy's broadcasting. Two
// tensors must have the same dtype; a number is used in f32. Operations with whole results (add,
// sub, mul, minimum, maximum) also accept i32, which wraps around.

/** Computes the gradients of a and b from dy, a and b, before the sums over broadcast axes. */
type Rule = (
  dy: Tensor,
  a: Tensor,
  b: Tensor,
  needs: (input: number) => boolean,
) => (Tensor | null)[];

const number = (value: number, like: Tensor): Tensor =>
  scalarLike("backward", "factor", value, like, true);

/**
 * dy where the operand decides the result, half of it where both are equal, like PyTorch's maximum
 * and minimum.
 */
function shareOf(dy: Tensor, a: Tensor, b: Tensor, losesWhen: "lt" | "gt"): Tensor {
  const won = applyWhere(applyBinary(losesWhen, a, b), scalarLike("backward", "0", 0, dy), dy);
  return applyWhere(applyBinary("eq", a, b), applyBinary("mul", dy, number(0.5, dy)), won);
}

const negative = (x: Tensor): Tensor => applyUnary("neg", x);

const rules: { [K in BinaryKind]: Rule } = {
  add: (dy) => [dy, dy],
  sub: (dy, _a, _b, needs) => [dy, needs(1) ? negative(dy) : null],
  mul: (dy, a, b, needs) => [
    needs(0) ? applyBinary("mul", dy, b) : null,
    needs(1) ? applyBinary("mul", dy, a) : null,
  ],
  div: (dy, a, b, needs) => [
    needs(0) ? applyBinary("div", dy, b) : null,
    // -(dy · (a/b)) / b, step by step: b² and a/b² may overflow even if the result does not.
    needs(1)
      ? negative(applyBinary("div", applyBinary("mul", dy, applyBinary("div", a, b)), b))
      : null,
  ],
  maximum: (dy, a, b, needs) => [
    needs(0) ? shareOf(dy, a, b, "lt") : null,
    needs(1) ? shareOf(dy, b, a, "lt") : null,
  ],
  minimum: (dy, a, b, needs) => [
    needs(0) ? shareOf(dy, a, b, "gt") : null,
    needs(1) ? shareOf(dy, b, a, "gt") : null,
  ],
  pow: (dy, a, b, needs) => [
    needs(0) ? powerBase(dy, a, b) : null,
    needs(1) ? powerExponent(dy, a, b) : null,
  ],
};

/** dy · b · a^(b-1); 0 where b is 0, even at a = 0. */
function powerBase(dy: Tensor, a: Tensor, b: Tensor): Tensor {
  const slope = applyBinary("mul", applyBinary("pow", a, applyBinary("sub", b, number(1, b))), b);
  const gradient = applyBinary("mul", dy, slope);
  const zero = scalarLike("backward", "0", 0, gradient);
  return applyWhere(applyBinary("eq", b, scalarLike("backward", "0", 0, b)), zero, gradient);
}

/** dy · a^b · log(a); 0 where a is 0 and b is not negative. */
function powerExponent(dy: Tensor, a: Tensor, b: Tensor): Tensor {
  const gradient = applyBinary(
    "mul",
    dy,
    applyBinary("mul", applyBinary("pow", a, b), applyUnary("log", a)),
  );
  const zeroBase = applyBinary("eq", a, scalarLike("backward", "0", 0, a));
  const settled = applyBinary(
    "mul",
    zeroBase,
    applyBinary("ge", b, scalarLike("backward", "0", 0, b)),
  );
  return applyWhere(settled, scalarLike("backward", "0", 0, gradient), gradient);
}

function binary(kind: BinaryKind, first: Operand, second: Operand): Tensor {
  const whole = kind !== "div" && kind !== "pow";
  const { a, b, release } = checkOperands(
    kind,
    first,
    second,
    whole ? checkTensor : checkFloat,
    true,
  );
  broadcastShapes(kind, a.shape, b.shape);
  const { shape: shapeA } = a;
  const { shape: shapeB } = b;
  const rule = rules[kind];
  const linear = kind === "add" || kind === "sub";
  const y = differentiable(kind, {
    inputs: [a, b],
    outputs: [applyBinary(kind, a, b)],
    saved: linear ? [] : [a, b],
    backward: ([dy], [savedA, savedB], _into, needs) => {
      const [da, db] = rule(dy as Tensor, savedA as Tensor, savedB as Tensor, needs);
      return [da && needs(0) ? sumTo(da, shapeA) : null, db && needs(1) ? sumTo(db, shapeB) : null];
    },
  });
  release();
  return y;
}

/**
 * a + b, element by element.
 * @throws ShapeError if the shapes do not broadcast, DTypeError, DeviceError
 */
export function add(a: Operand, b: Operand): Tensor {
  return binary("add", a, b);
}

/** a - b, element by element. */
export function sub(a: Operand, b: Operand): Tensor {
  return binary("sub", a, b);
}

/** a · b, element by element. */
export function mul(a: Operand, b: Operand): Tensor {
  return binary("mul", a, b);
}

/** a / b, element by element; f32 or bf16. Division by zero gives infinities and NaN. */
export function div(a: Operand, b: Operand): Tensor {
  return binary("div", a, b);
}

/** The smaller of a and b; NaN if either is. Equal elements share the gradient. */
export function minimum(a: Operand, b: Operand): Tensor {
  return binary("minimum", a, b);
}

/** The larger of a and b; NaN if either is. Equal elements share the gradient. */
export function maximum(a: Operand, b: Operand): Tensor {
  return binary("maximum", a, b);
}

/** a to the power of b; f32 or bf16. NaN for a negative base and a fractional exponent. */
export function pow(a: Operand, b: Operand): Tensor {
  if (b === 2 && typeof a !== "number") {
    checkFloat("pow", "a", a);
    return square(a);
  }
  return binary("pow", a, b);
}
