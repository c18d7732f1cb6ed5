import { differentiable, type GradientTarget } from "../core/autograd.js";
import {
  checkFloat,
  checkRank,
  checkSameDevice,
  checkSameDType,
  checkShape,
  shapeText,
} from "../core/check.js";
import { full } from "../core/create.js";
import { ShapeError } from "../core/errors.js";
import { rowsAreIndependent } from "../core/independent-rows.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";
import { add } from "./binary.js";
import { matmul } from "./matmul.js";
import { transpose } from "./shape.js";

/** A view with at least two axes. Products fold further leading axes into rows. */
const asRows = (x: Tensor): Tensor => (x.rank >= 2 ? x : x.view([1, x.size]));

/** y = x · weightᵀ, or y = x · weightᵀ + bias, rounded once. */
function product(x: Tensor, weight: Tensor, bias: Tensor | null, y: Tensor): void {
  const rows = [asRows(x), asRows(y)] as const;
  const alike = rowsAreIndependent();
  if (bias) {
    // The product adds to rows that hold the bias. max(b, b) is b, and broadcasts.
    native.binary(bias.native, bias.native, rows[1].native, "maximum");
    native.gemmAccumulate(rows[0].native, weight.native, rows[1].native, false, true, alike);
  } else native.gemm(rows[0].native, weight.native, rows[1].native, false, true, alike);
  if (x.rank === 1) for (const view of rows) view.dispose();
}

/**
 * The bias's gradient, the sum of dy's rows: a product with ones, summed in f32 in the leaf's
 * buffer.
 * @returns null if the gradient is in the leaf's buffer
 * @internal
 */
export function biasGradient(dy: Tensor, target: GradientTarget | null): Tensor | null {
  const outputs = dy.shape.at(-1) as number;
  const rows = dy.size / outputs;
  const { dtype, device } = dy;
  const one = full([1, rows], 1, { dtype, device });
  const buffer = target?.tensor ?? empty([outputs], dy);
  const multiply = target?.accumulate ? native.gemmAccumulate : native.gemm;
  const [summed, dyRows] = [buffer.view([1, outputs]), dy.view([rows, outputs])];
  multiply(one.native, dyRows.native, summed.native, false, false, false);
  for (const tensor of [one, summed, dyRows]) tensor.dispose();
  return target ? null : buffer;
}

/**
 * The linear layer: y = x · weightᵀ + bias. The gradients of weight and bias are summed in f32
 * directly into their buffers, so that accumulating micro-batches costs nothing.
 * @param x      (..., in) f32 or bf16
 * @param weight (out, in) of x's dtype
 * @param bias   (out) of x's dtype, or null. Default: null
 * @returns (..., out) of x's dtype; sums are f32
 * @throws ShapeError if the last axes of x and weight, or the first of weight and bias, differ
 */
export function linear(x: Tensor, weight: Tensor, bias: Tensor | null = null): Tensor {
  checkFloat("linear", "x", x);
  checkFloat("linear", "weight", weight);
  checkSameDevice("linear", x, weight);
  checkSameDType("linear", x, weight);
  if (x.rank === 0)
    throw new ShapeError("[linear] expected at least 1 axis for x but received shape []");
  checkRank("linear", "weight", weight, 2);
  const [outputs, inputs] = weight.shape as [number, number];
  checkShape(
    "linear",
    "weight",
    weight,
    [null, x.shape.at(-1) as number],
    `last axis of x ${shapeText(x.shape)}`,
  );
  if (bias !== null) {
    checkFloat("linear", "bias", bias);
    checkSameDevice("linear", x, bias);
    checkSameDType("linear", x, bias);
    checkShape("linear", "bias", bias, [outputs], "first axis of weight");
  }

  const y = empty([...x.shape.slice(0, -1), outputs], x);
  product(x, weight, bias, y);
  const { shape } = x;
  return differentiable("linear", {
    inputs: bias ? [x, weight, bias] : [x, weight],
    outputs: [y],
    // A frozen weight has no gradient to compute from x.
    saved: weight.requiresGrad ? [weight, x] : [weight],
    backward: ([dy], [weight, x], into, needs) => {
      const w = weight as Tensor;
      const dyRows = asRows(dy as Tensor);
      let dx: Tensor | null = null;
      if (needs(0)) {
        dx = empty(shape, w);
        native.gemm(dyRows.native, w.native, asRows(dx).native, false, false, false);
      }
      const dBias = bias && needs(2) ? [biasGradient(dy as Tensor, into(2))] : [];
      if (!needs(1)) return [dx, null, ...dBias];
      const target = into(1);
      const dWeight = target?.tensor ?? empty([outputs, inputs], w);
      const multiply = target?.accumulate ? native.gemmAccumulate : native.gemm;
      multiply(dyRows.native, asRows(x as Tensor).native, dWeight.native, true, false, false);
      return [dx, target ? null : dWeight, ...dBias];
    },
  });
}

/**
 * `linear` composed of plain operations: its definition, and the oracle of its test.
 * @param x      (..., in)
 * @param weight (out, in)
 * @param bias   (out), or null
 * @returns (..., out)
 */
export function composedLinear(x: Tensor, weight: Tensor, bias: Tensor | null = null): Tensor {
  const y = matmul(x, transpose(weight));
  return bias ? add(y, bias) : y;
}
