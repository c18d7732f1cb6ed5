import { differentiable } from "../core/autograd.js";
import {
  checkFloat,
  checkRank,
  checkSameDevice,
  checkSameDType,
  checkShape,
  shapeText,
} from "../core/check.js";
import { ShapeError } from "../core/errors.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";
import { matmul } from "./matmul.js";
import { transpose } from "./shape.js";

/** A view with at least two axes. Products fold further leading axes into rows. */
const asRows = (x: Tensor): Tensor => (x.rank >= 2 ? x : x.view([1, x.size]));

/**
 * The linear layer without bias: y = x · weightᵀ. The weight's gradient is summed in f32 directly
 * into its buffer, so that accumulating micro-batches costs nothing.
 * @param x      (..., in) f32 or bf16
 * @param weight (out, in) of x's dtype
 * @returns (..., out) of x's dtype; sums are f32
 * @throws ShapeError if the last axes differ
 */
export function linear(x: Tensor, weight: Tensor): Tensor {
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

  const y = empty([...x.shape.slice(0, -1), outputs], x);
  const rows = [asRows(x), asRows(y)] as const;
  native.gemm(rows[0].native, weight.native, rows[1].native, false, true);
  if (x.rank === 1) for (const view of rows) view.dispose();
  return differentiable("linear", {
    inputs: [x, weight],
    outputs: [y],
    saved: [x, weight],
    backward: ([dy], [x, weight], into, needs) => {
      const [saved, w] = [x as Tensor, weight as Tensor];
      const dyRows = asRows(dy as Tensor);
      let dx: Tensor | null = null;
      if (needs(0)) {
        dx = empty(saved.shape, saved);
        native.gemm(dyRows.native, w.native, asRows(dx).native, false, false);
      }
      if (!needs(1)) return [dx, null];
      const target = into(1);
      const dWeight = target?.tensor ?? empty([outputs, inputs], w);
      const product = target?.accumulate ? native.gemmAccumulate : native.gemm;
      product(dyRows.native, asRows(saved).native, dWeight.native, true, false);
      return [dx, target ? null : dWeight];
    },
  });
}

/**
 * `linear` composed of plain operations: its definition, and the oracle of its test.
 * @param x      (..., in)
 * @param weight (out, in)
 * @returns (..., out)
 */
export function composedLinear(x: Tensor, weight: Tensor): Tensor {
  return matmul(x, transpose(weight));
}
