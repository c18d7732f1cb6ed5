import { differentiable } from "../core/autograd.js";
import { checkFloat, checkTensor } from "../core/check.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";

// Functions of one tensor, element by element, for f32 and bf16 (computed in f32). neg, abs, square
// and relu also accept i32.

export type UnaryKind =
  | "neg"
  | "abs"
  | "exp"
  | "log"
  | "sqrt"
  | "rsqrt"
  | "square"
  | "reciprocal"
  | "tanh"
  | "sigmoid"
  | "silu"
  | "gelu"
  | "relu"
  | "sin"
  | "cos";

/**
 * f(x) outside of the tape.
 * @internal
 */
export function applyUnary(kind: UnaryKind, x: Tensor): Tensor {
  const y = empty(x.shape, x);
  native.unary(x.native, y.native, kind);
  return y;
}

function unary(kind: UnaryKind, x: Tensor, check: typeof checkTensor = checkFloat): Tensor {
  check(kind, "x", x);
  return differentiable(kind, {
    inputs: [x],
    outputs: [applyUnary(kind, x)],
    saved: [x],
    backward: ([dy], [x]) => {
      const dx = empty((x as Tensor).shape, x as Tensor);
      native.unaryBackward((dy as Tensor).native, (x as Tensor).native, dx.native, kind);
      return [dx];
    },
  });
}

/** -x */
export function neg(x: Tensor): Tensor {
  return unary("neg", x, checkTensor);
}

/** |x|; its gradient at 0 is 0. */
export function abs(x: Tensor): Tensor {
  return unary("abs", x, checkTensor);
}

/** e^x */
export function exp(x: Tensor): Tensor {
  return unary("exp", x);
}

/** Natural logarithm; -inf at 0, NaN below. */
export function log(x: Tensor): Tensor {
  return unary("log", x);
}

/** Square root; NaN below 0. */
export function sqrt(x: Tensor): Tensor {
  return unary("sqrt", x);
}

/** 1 / sqrt(x) */
export function rsqrt(x: Tensor): Tensor {
  return unary("rsqrt", x);
}

/** x² */
export function square(x: Tensor): Tensor {
  return unary("square", x, checkTensor);
}

/** 1 / x */
export function reciprocal(x: Tensor): Tensor {
  return unary("reciprocal", x);
}

/** Hyperbolic tangent. */
export function tanh(x: Tensor): Tensor {
  return unary("tanh", x);
}

/** 1 / (1 + e^-x) */
export function sigmoid(x: Tensor): Tensor {
  return unary("sigmoid", x);
}

/** x · sigmoid(x), also called swish. @see Ramachandran et al. 2017, arXiv 1710.05941 */
export function silu(x: Tensor): Tensor {
  return unary("silu", x);
}

/**
 * Gaussian error linear unit in its tanh form, x/2 · (1 + tanh(sqrt(2/π) · (x + 0.044715 x³))).
 * @see Hendrycks & Gimpel 2016, arXiv 1606.08415
 */
export function gelu(x: Tensor): Tensor {
  return unary("gelu", x);
}

/** max(x, 0); its gradient at 0 is 0. */
export function relu(x: Tensor): Tensor {
  return unary("relu", x, checkTensor);
}

/** Sine of x in radians. */
export function sin(x: Tensor): Tensor {
  return unary("sin", x);
}

/** Cosine of x in radians. */
export function cos(x: Tensor): Tensor {
  return unary("cos", x);
}
