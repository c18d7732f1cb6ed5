import { gradientsEnabled } from "../core/autograd.js";
import {
  checkBoolean,
  checkFloat,
  checkNumber,
  checkOptions,
  checkRank,
  checkSameDevice,
  checkSameDType,
  checkShape,
  shapeText,
} from "../core/check.js";
import { AutogradError, ShapeError } from "../core/errors.js";
import { rowsAreIndependent } from "../core/independent-rows.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";
import { linear } from "./linear.js";
import { addRmsNorm, rmsNorm } from "./rms-norm.js";
import { swiglu } from "./swiglu.js";

/** Options of `normLinear`. */
export interface NormLinearOptions {
  /** Of the norm. Default: 1e-5. */
  eps?: number;
  /** Whether `swiglu` follows the product. Default: false. */
  swiglu?: boolean;
}

/**
 * A norm and the product that reads it, for generation: sum = x + skip, y = linear(rmsNorm(sum,
 * normWeight), weight), with `swiglu` y = swiglu of that. On a GPU, up to 16 rows of bf16 are one
 * kernel that reads the weight once. Not differentiable.
 * @param x          (..., in) f32 or bf16
 * @param skip       of x's shape and dtype, or null
 * @param normWeight (in) f32 or bf16
 * @param weight     (out, in) of x's dtype; with `swiglu`, gate and up below each other
 * @returns sum and y: x's shape, and (..., out), with `swiglu` (..., out / 2), both of x's dtype.
 *   Without skip, sum is x itself
 * @throws ShapeError, DTypeError, DeviceError, ArgumentError for arguments that do not fit
 */
export function normLinear(
  x: Tensor,
  skip: Tensor | null,
  normWeight: Tensor,
  weight: Tensor,
  options: NormLinearOptions = {},
): [sum: Tensor, y: Tensor] {
  const op = "normLinear";
  checkOptions(op, options, ["eps", "swiglu"]);
  const { eps = 1e-5, swiglu: gated = false } = options;
  checkNumber(op, "eps", eps, { min: 0 });
  checkBoolean(op, "swiglu", gated);
  checkFloat(op, "x", x);
  if (x.rank === 0) {
    throw new ShapeError(`[${op}] expected at least 1 axis for x but received shape []`);
  }
  const inputs = x.shape.at(-1) as number;
  const lastAxis = `last axis of x ${shapeText(x.shape)}`;
  checkFloat(op, "normWeight", normWeight);
  checkSameDevice(op, x, normWeight);
  checkShape(op, "normWeight", normWeight, [inputs], lastAxis);
  checkFloat(op, "weight", weight);
  checkSameDevice(op, x, weight);
  checkSameDType(op, x, weight);
  checkRank(op, "weight", weight, 2);
  checkShape(op, "weight", weight, [null, inputs], lastAxis);
  if (skip !== null) {
    checkFloat(op, "skip", skip);
    checkSameDevice(op, x, skip);
    checkSameDType(op, x, skip);
    checkShape(op, "skip", skip, x.shape, "the shape of x");
  }
  const [products] = weight.shape as [number, number];
  if (gated && products % 2 !== 0) {
    throw new ShapeError(
      `[${op}] expected an even first axis of weight for swiglu but received ${shapeText(weight.shape)}`,
    );
  }
  const needed = [x, skip, normWeight, weight].some((tensor) => tensor?.requiresGrad);
  if (gradientsEnabled() && needed) {
    throw new AutogradError(
      `[${op}] has no gradient: call it inside noGrad(), or use addRmsNorm(), linear() and swiglu()`,
    );
  }
  // The kernel's product is the fastest for its number of rows.
  if (rowsAreIndependent()) return composedNormLinear(x, skip, normWeight, weight, options);
  const outputs = gated ? products / 2 : products;
  const rows = x.size / inputs;
  const sum = skip === null ? x : empty(x.shape, x, op);
  const y = empty([...x.shape.slice(0, -1), outputs], x, op);
  const views = [x, skip, skip && sum].map((tensor) => tensor?.view([rows, inputs]) ?? null);
  const [xRows, skipRows, sumRows] = views as [Tensor, Tensor | null, Tensor | null];
  const yRows = y.view([rows, outputs]);
  native.normLinear(
    xRows.native,
    skipRows?.native ?? null,
    normWeight.native,
    weight.native,
    sumRows?.native ?? null,
    yRows.native,
    eps,
    gated,
  );
  for (const view of [...views, yRows]) view?.dispose();
  return [sum, y];
}

/** `normLinear` composed of other operations, with the same shapes: the oracle of its test. */
export function composedNormLinear(
  x: Tensor,
  skip: Tensor | null,
  normWeight: Tensor,
  weight: Tensor,
  { eps = 1e-5, swiglu: gated = false }: NormLinearOptions = {},
): [sum: Tensor, y: Tensor] {
  const [sum, normed] = skip
    ? addRmsNorm(x, skip, normWeight, eps)
    : ([x, rmsNorm(x, normWeight, eps)] as const);
  const product = linear(normed, weight);
  return [sum, gated ? swiglu(product) : product];
}
