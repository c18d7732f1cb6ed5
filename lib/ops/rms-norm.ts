import { type BackwardFunction, differentiable, type GradientTarget } from "../core/autograd.js";
import {
  checkFloat,
  checkNumber,
  checkSameDevice,
  checkSameDType,
  checkShape,
  shapeText,
} from "../core/check.js";
import { ShapeError } from "../core/errors.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";
import { add, mul } from "./binary.js";
import { mean } from "./reduce.js";
import { rsqrt, square } from "./unary.js";
import { weightGradient } from "./weight-gradient.js";

function checkArguments(op: string, x: Tensor, weight: Tensor, eps: number): void {
  checkFloat(op, "x", x);
  checkFloat(op, "weight", weight);
  checkNumber(op, "eps", eps, { min: 0 });
  if (x.rank === 0) {
    throw new ShapeError(`[${op}] expected at least 1 axis for x but received shape []`);
  }
  checkSameDevice(op, x, weight);
  checkShape(
    op,
    "weight",
    weight,
    [x.shape.at(-1) as number],
    `last axis of x ${shapeText(x.shape)}`,
  );
}

/** 1 / rms of each row, f32, for backward. */
const rowScales = (x: Tensor): Tensor =>
  empty(x.shape.slice(0, -1), { dtype: "f32", device: x.device });

/**
 * Gradients of a norm's input and weight.
 * @param dy gradient of the normed rows
 * @param dSum gradient that reached the rows themselves, or null
 * @internal
 */
export function normGradients(
  dy: Tensor,
  dSum: Tensor | null,
  { x, weight, rstd }: { x: Tensor; weight: Tensor; rstd: Tensor },
  weightNeeded: boolean,
  weightTarget: () => GradientTarget | null,
): { dx: Tensor; dWeight: Tensor | null } {
  const dx = empty(x.shape, x);
  const run = (buffer: Tensor | null): void =>
    native.rmsNormBackward(
      dy.native,
      x.native,
      weight.native,
      rstd.native,
      dSum?.native ?? null,
      dx.native,
      buffer?.native ?? null,
    );
  if (weightNeeded) return { dx, dWeight: weightGradient(weight, weightTarget(), run) };
  run(null);
  return { dx, dWeight: null };
}

/**
 * Root-mean-square norm over the last axis: y = x / sqrt(mean(x²) + eps) · weight.
 * @param x      (..., hidden) bf16 or f32
 * @param weight (hidden) bf16 or f32
 * @param eps    at least 0
 * @returns y with the shape and dtype of x
 * @throws ShapeError if weight's length is not x's last axis
 * @see Zhang & Sennrich 2019, arXiv 1910.07467
 */
export function rmsNorm(x: Tensor, weight: Tensor, eps = 1e-5): Tensor {
  checkArguments("rmsNorm", x, weight, eps);
  const y = empty(x.shape, x);
  const rstd = rowScales(x);
  native.rmsNormForward(x.native, weight.native, y.native, rstd.native, eps);
  const backward: BackwardFunction = ([dy], [x, weight, rstd], into, needs) => {
    const saved = { x: x as Tensor, weight: weight as Tensor, rstd: rstd as Tensor };
    const { dx, dWeight } = normGradients(dy as Tensor, null, saved, needs(1), () => into(1));
    return [dx, dWeight];
  };
  const result = differentiable("rmsNorm", {
    inputs: [x, weight],
    outputs: [y],
    saved: [x, weight, rstd],
    backward,
  });
  rstd.dispose();
  return result;
}

/**
 * Residual add and norm in one pass: sum = x + skip, normed = rmsNorm(sum, weight).
 * @param x      (..., hidden) bf16 or f32
 * @param skip   of x's shape and dtype
 * @param weight (hidden) bf16 or f32
 * @returns [sum, normed], both differentiable, with the shape and dtype of x
 * @throws ShapeError if skip's shape is not x's, or weight's length is not x's last axis
 */
export function addRmsNorm(
  x: Tensor,
  skip: Tensor,
  weight: Tensor,
  eps = 1e-5,
): [sum: Tensor, normed: Tensor] {
  checkArguments("addRmsNorm", x, weight, eps);
  checkFloat("addRmsNorm", "skip", skip);
  checkSameDType("addRmsNorm", x, skip);
  checkSameDevice("addRmsNorm", x, skip);
  checkShape("addRmsNorm", "skip", skip, x.shape, "the shape of x");
  const sum = empty(x.shape, x);
  const normed = empty(x.shape, x);
  const rstd = rowScales(x);
  native.addRmsNormForward(
    x.native,
    skip.native,
    weight.native,
    sum.native,
    normed.native,
    rstd.native,
    eps,
  );
  // x and skip only enter through their sum, so they share one gradient.
  const backward: BackwardFunction = ([dSum, dNormed], [sum, weight, rstd], into, needs) => {
    if (!dNormed) return [dSum ?? null, dSum ?? null, null];
    const saved = { x: sum as Tensor, weight: weight as Tensor, rstd: rstd as Tensor };
    const { dx, dWeight } = normGradients(dNormed, dSum ?? null, saved, needs(2), () => into(2));
    return [dx, dx, dWeight];
  };
  const result = differentiable("addRmsNorm", {
    inputs: [x, skip, weight],
    outputs: [sum, normed] as [Tensor, Tensor],
    saved: [sum, weight, rstd],
    backward,
  });
  rstd.dispose();
  return result;
}

/**
 * `rmsNorm` composed of plain operations: its definition, and the oracle of its test.
 * @param x      (..., hidden)
 * @param weight (hidden) of x's dtype
 * @returns (..., hidden)
 */
export function composedRmsNorm(x: Tensor, weight: Tensor, eps = 1e-5): Tensor {
  const meanSquare = mean(square(x), -1, { keepDims: true }); // (..., 1)
  return mul(mul(x, rsqrt(add(meanSquare, eps))), weight);
}

/** `addRmsNorm` composed of plain operations, with the same shapes. */
export function composedAddRmsNorm(
  x: Tensor,
  skip: Tensor,
  weight: Tensor,
  eps = 1e-5,
): [sum: Tensor, normed: Tensor] {
  const sum = add(x, skip);
  return [sum, composedRmsNorm(sum, weight, eps)];
}
