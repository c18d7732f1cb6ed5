import { differentiable, gradientsEnabled } from "../core/autograd.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";
import type { FrozenLinear } from "./adapted-linear.js";
import {
  checkFp8,
  columnsOf,
  dropCopy,
  emptyCopy,
  type Fp8Copy,
  type Fp8Observer,
  type Fp8Part,
  fp8Cast,
  fp8Choices,
  fp8Maximum,
  fp8Product,
  fp8WeightGradient,
  observed,
  rowsOf,
} from "./fp8.js";
import type { Fp8Weights } from "./fp8-weights.js";
import { biasGradient } from "./linear.js";
import { normGradients } from "./rms-norm.js";

/** A linear layer's parameters. */
export interface LinearParameters {
  /** (outputs, inputs) bf16 */
  weight: Tensor;
  /** (outputs) bf16, or null */
  bias: Tensor | null;
}

/** A norm's weight (hidden) bf16 and its epsilon. */
export interface NormParameters {
  weight: Tensor;
  eps: number;
}

const both = { rows: true, columns: true };

/** Whether backward computes a weight's gradient. */
const isTrained = (weight: Tensor): boolean => gradientsEnabled() && weight.requiresGrad;

const present = (...tensors: readonly (Tensor | null)[]): Tensor[] =>
  tensors.filter((tensor) => tensor !== null);

/** Casts a gradient into the layouts that backward needs. */
function castGradient(
  dy: Tensor,
  needs: { input: boolean; weight: boolean },
  observe: Fp8Observer,
): Fp8Copy {
  const layouts = { rows: needs.input, columns: needs.weight };
  return observed(observe, "gradient", fp8Cast(dy, layouts, fp8Choices.gradient));
}

/** Multiplies an activation with a weight, and frees the activation's rows. */
function output(
  x: Fp8Copy,
  { weight, bias }: LinearParameters,
  weights: Fp8Weights,
  observe: Fp8Observer,
): Tensor {
  const rows = weights.rows(weight);
  observe?.("weight", rows);
  const y = fp8Product(rowsOf(observed(observe, "input", x)), rows, bias, fp8Choices.fast.output);
  x.rows?.dispose();
  return y;
}

/** The gradient of an activation, from that of its product with a weight. */
function inputGradient(dy: Fp8Copy, weight: Tensor, weights: Fp8Weights): Tensor {
  const { inputGradient: fast } = fp8Choices.fast;
  return fp8Product(rowsOf(dy), weights.columns(weight), null, fast);
}

/**
 * The linear layer in fp8: y = x · weightᵀ + bias. The weight is rounded to e4m3, and so is x; in
 * backward, the gradient of y to e5m2. Each has one scale, of its largest number. Sums and the
 * weight's gradient are f32.
 * @param x (..., inputs) bf16
 * @param weights the copies of the model's weights
 * @param observe sees the tensors in fp8. Default: null
 * @returns (..., outputs) bf16
 * @throws ShapeError unless inputs and outputs are multiples of 16; DTypeError unless all are bf16
 * @see Micikevicius et al. 2022, arXiv 2209.05433
 */
export function fp8Linear(
  x: Tensor,
  layer: LinearParameters,
  weights: Fp8Weights,
  observe: Fp8Observer = null,
): Tensor {
  const { weight, bias } = layer;
  checkFp8("fp8Linear", x, weight);
  const x8 = fp8Cast(x, { rows: true, columns: isTrained(weight) }, fp8Choices.forward);
  const y = output(x8, layer, weights, observe);
  const result = differentiable("fp8Linear", {
    inputs: present(x, weight, bias),
    outputs: [y],
    saved: present(weight, x8.scale, x8.columns),
    backward: ([dy], [, scale, columns], into, needs) => {
      const saved = { bits: columns, scale } as Fp8Part;
      const dy8 = castGradient(dy as Tensor, { input: needs(0), weight: needs(1) }, observe);
      const dx = needs(0) ? inputGradient(dy8, weight, weights) : null;
      const dWeight = needs(1) ? fp8WeightGradient(columnsOf(dy8), saved, weight, into(1)) : null;
      return [dx, dWeight, ...(bias && needs(2) ? [biasGradient(dy as Tensor, into(2))] : [])];
    },
  });
  dropCopy(x8);
  return result;
}

/**
 * A linear layer that is not trained, in fp8: its weight's gradient is not computed, so nothing of x
 * is kept for it.
 */
export function frozenFp8Linear(
  layer: LinearParameters,
  weights: Fp8Weights,
  observe: Fp8Observer = null,
): FrozenLinear {
  return {
    ...layer,
    forward: (x) => fp8Linear(x, layer, weights, observe),
    inputGradient: (dy) => {
      const dy8 = castGradient(dy, { input: true, weight: false }, observe);
      const dx = inputGradient(dy8, layer.weight, weights);
      dropCopy(dy8);
      return dx;
    },
  };
}

/** A normed sum in fp8: x + skip (x itself without skip), rstd of its rows, and the norm. */
interface Normed {
  sum: Tensor;
  rstd: Tensor;
  copy: Fp8Copy;
}

function norm(
  x: Tensor,
  skip: Tensor | null,
  { weight, eps }: NormParameters,
  recording: boolean,
): Normed {
  const sum = skip ? empty(x.shape, x) : x;
  const rstd = empty(x.shape.slice(0, -1), { device: x.device });
  const copy = emptyCopy(x.shape, x, { rows: true, columns: recording }, fp8Choices.forward);
  native.fp8RmsNormForward(
    x.native,
    skip?.native ?? null,
    weight.native,
    skip ? sum.native : null,
    copy.rows?.native ?? null,
    copy.columns?.native ?? null,
    copy.scale.native,
    rstd.native,
    eps,
  );
  return { sum, rstd, copy };
}

/**
 * Residual add, norm and linear layer: sum = x + skip, y = linear(rmsNorm(sum)), the product in fp8.
 * The scale of the normed rows is that of their bound, sqrt(hidden) · max|norm weight|.
 * @param x    (..., hidden) bf16
 * @param skip of x's shape, or null: then the sum is x
 * @returns [sum, y]; the sum is x itself without skip
 * @throws as fp8Linear
 */
export function fp8NormLinear(
  x: Tensor,
  skip: Tensor | null,
  normed: NormParameters,
  layer: LinearParameters,
  weights: Fp8Weights,
  observe: Fp8Observer = null,
): readonly [sum: Tensor, y: Tensor] {
  const { weight, bias } = layer;
  const op = "fp8NormLinear";
  checkFp8(op, x, weight);
  const { sum, rstd, copy } = norm(x, skip, normed, isTrained(weight));
  const y = output(copy, layer, weights, observe);
  const made = skip ? 1 : 0; // outputs and inputs that skip adds
  differentiable(op, {
    inputs: present(x, skip, normed.weight, weight, bias),
    outputs: skip ? [sum, y] : [y],
    saved: present(sum, normed.weight, rstd, weight, copy.scale, copy.columns),
    backward: (gradients, [sum, normWeight, rstd, , scale, columns], into, needs) => {
      const [dSum, dy] = [made ? gradients[0] : null, gradients[made]];
      if (!dy) return [dSum ?? null, ...(made ? [dSum ?? null] : [])];
      const saved = { bits: columns, scale } as Fp8Part;
      const dy8 = castGradient(dy, { input: true, weight: needs(made + 2) }, observe);
      const dNormed = inputGradient(dy8, weight, weights);
      const dWeight = needs(made + 2)
        ? fp8WeightGradient(columnsOf(dy8), saved, weight, into(made + 2))
        : null;
      dropCopy(dy8);
      const rows = { x: sum as Tensor, weight: normWeight as Tensor, rstd: rstd as Tensor };
      const { dx, dWeight: dNorm } = normGradients(
        dNormed,
        dSum ?? null,
        rows,
        needs(made + 1),
        () => into(made + 1),
      );
      const dBias = bias && needs(made + 3) ? [biasGradient(dy, into(made + 3))] : [];
      return [dx, ...(made ? [dx] : []), dNorm, dWeight, ...dBias];
    },
  });
  dropCopy(copy);
  rstd.dispose();
  return [sum, y];
}

/**
 * The second half of a block: sum = x + skip, y = down(swiglu(gateUp(rmsNorm(sum)))), both products
 * in fp8. SwiGLU's result has the scale of its largest number. Its gradient is cast at once, with a
 * bound: the largest gradient that reaches it times its steepest slope.
 * @param x    (..., hidden) bf16
 * @param skip of x's shape
 * @param gateUp weight (2 · ffn, hidden)
 * @param down   weight (hidden, ffn)
 * @returns [sum, y] (..., hidden) bf16
 * @throws as fp8Linear
 */
export function fp8NormFeedForward(
  x: Tensor,
  skip: Tensor,
  normed: NormParameters,
  { gateUp, down }: { gateUp: LinearParameters; down: LinearParameters },
  weights: Fp8Weights,
  observe: { gateUp: Fp8Observer; down: Fp8Observer } | null = null,
): readonly [sum: Tensor, y: Tensor] {
  const op = "fp8NormFeedForward";
  checkFp8(op, x, gateUp.weight);
  const layers = present(gateUp.weight, down.weight, gateUp.bias, down.bias);
  const inputs = [x, skip, normed.weight, ...layers];
  const { sum, rstd, copy } = norm(x, skip, normed, isTrained(gateUp.weight));
  const [watchGateUp, watchDown] = [observe?.gateUp ?? null, observe?.down ?? null];
  const packed = output(copy, gateUp, weights, watchGateUp);
  const ffn = (packed.shape.at(-1) as number) / 2;
  const hidden = empty([...packed.shape.slice(0, -1), ffn], packed);
  checkFp8(op, hidden, down.weight);
  const { device } = x;
  const [maximum, slope] = [empty([1], { device }), empty([1], { device })];
  native.fp8SwigluForward(packed.native, hidden.native, maximum.native, slope.native);
  const layouts = { rows: true, columns: isTrained(down.weight) };
  const hidden8 = fp8Cast(hidden, layouts, fp8Choices.forward, maximum);
  hidden.dispose();
  maximum.dispose();
  const y = output(hidden8, down, weights, watchDown);
  const biasPlace = { gateUp: 5, down: gateUp.bias ? 6 : 5 };
  differentiable(op, {
    inputs,
    outputs: [sum, y],
    saved: present(
      ...[sum, normed.weight, rstd, gateUp.weight, down.weight, packed, slope],
      ...[copy.scale, hidden8.scale, copy.columns, hidden8.columns],
    ),
    backward: ([dSum, dy], saved, into, needs) => {
      if (!dy) return [dSum ?? null, dSum ?? null];
      const [sum, normWeight, rstd, , , packed, slope, ...copies] = saved as Tensor[];
      const [xScale, hScale, ...columns] = copies;
      const xColumns = copy.columns ? columns.shift() : null;
      const [hColumns] = columns;
      const dy8 = castGradient(dy, { input: true, weight: needs(4) }, watchDown);
      const dDown = needs(4)
        ? fp8WeightGradient(
            columnsOf(dy8),
            { bits: hColumns, scale: hScale } as Fp8Part,
            down.weight,
            into(4),
          )
        : null;
      const dHidden = inputGradient(dy8, down.weight, weights);
      dropCopy(dy8);
      let dGateUpBias: Tensor | null = null;
      let dPacked8: Fp8Copy;
      if (gateUp.bias && needs(biasPlace.gateUp)) {
        // The bias's gradient is a sum over bf16 numbers.
        const dPacked = empty((packed as Tensor).shape, packed as Tensor);
        native.swigluBackward(dHidden.native, (packed as Tensor).native, dPacked.native);
        dGateUpBias = biasGradient(dPacked, into(biasPlace.gateUp));
        dPacked8 = fp8Cast(dPacked, { ...both, columns: needs(3) }, fp8Choices.gradient);
        dPacked.dispose();
      } else {
        const largest = fp8Maximum(dHidden);
        dPacked8 = emptyCopy(
          (packed as Tensor).shape,
          dHidden,
          { rows: true, columns: needs(3) },
          fp8Choices.gradient,
        );
        native.fp8SwigluBackward(
          dHidden.native,
          largest.native,
          (packed as Tensor).native,
          (slope as Tensor).native,
          dPacked8.rows?.native ?? null,
          dPacked8.columns?.native ?? null,
          dPacked8.scale.native,
        );
        largest.dispose();
      }
      dHidden.dispose();
      observed(watchGateUp, "gradient", dPacked8);
      const dGateUp = needs(3)
        ? fp8WeightGradient(
            columnsOf(dPacked8),
            { bits: xColumns, scale: xScale } as Fp8Part,
            gateUp.weight,
            into(3),
          )
        : null;
      const dNormed = inputGradient(dPacked8, gateUp.weight, weights);
      dropCopy(dPacked8);
      const rows = { x: sum as Tensor, weight: normWeight as Tensor, rstd: rstd as Tensor };
      const { dx, dWeight } = normGradients(dNormed, dSum ?? null, rows, needs(2), () => into(2));
      const biases = [
        ...(gateUp.bias ? [dGateUpBias] : []),
        ...(down.bias
          ? [needs(biasPlace.down) ? biasGradient(dy, into(biasPlace.down)) : null]
          : []),
      ];
      return [dx, dx, dWeight, dGateUp, dDown, ...biases];
    },
  });
  for (const tensor of [rstd, packed, slope]) tensor.dispose();
  dropCopy(copy);
  dropCopy(hidden8);
  return [sum, y];
}
