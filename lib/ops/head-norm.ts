import { type BackwardFunction, differentiable } from "../core/autograd.js";
import {
  checkFloat,
  checkInteger,
  checkNumber,
  checkOptions,
  checkRank,
  checkSameDevice,
  checkShape,
  shapeText,
} from "../core/check.js";
import { ShapeError } from "../core/errors.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";
import { composedRmsNorm, normGradients } from "./rms-norm.js";
import { reshape } from "./shape.js";
import { concat, split } from "./slice.js";

/** Options of `headNorm`. */
export interface HeadNormOptions {
  /** Query heads. */
  heads: number;
  /** Key/value heads. Default: `heads`. */
  kvHeads?: number;
  /** Added to the mean square, at least 0. Default: 1e-6. */
  eps?: number;
}

interface HeadLayout {
  kvHeads: number;
  headSize: number;
  eps: number;
}

function checkArguments(
  qkv: Tensor,
  queryWeight: Tensor,
  keyWeight: Tensor,
  options: HeadNormOptions,
): HeadLayout {
  const op = "headNorm";
  checkFloat(op, "qkv", qkv);
  checkOptions(op, options, ["heads", "kvHeads", "eps"]);
  const { heads, kvHeads = heads, eps = 1e-6 } = options ?? {};
  checkInteger(op, "heads", heads, { min: 1 });
  checkInteger(op, "kvHeads", kvHeads, { min: 1, max: heads });
  checkNumber(op, "eps", eps, { min: 0 });
  checkRank(op, "qkv", qkv, 3);
  const width = qkv.shape[2] as number;
  if (width % (heads + 2 * kvHeads) !== 0) {
    throw new ShapeError(
      `[${op}] expected ${heads} query, ${kvHeads} key and ${kvHeads} value heads in the last axis of qkv ` +
        `but received ${shapeText(qkv.shape)}`,
    );
  }
  const headSize = width / (heads + 2 * kvHeads);
  for (const [name, weight] of Object.entries({ queryWeight, keyWeight })) {
    checkFloat(op, name, weight);
    checkSameDevice(op, qkv, weight);
    checkShape(op, name, weight, [headSize], `head size ${headSize}`);
  }
  return { kvHeads, headSize, eps };
}

/** A copy of the heads of qkv from `first` on: (batch, time, count, headSize). */
function headsOf(qkv: Tensor, first: number, [count, headSize]: readonly [number, number]): Tensor {
  const [batch, time] = qkv.shape as [number, number, number];
  const flat = empty([batch, time, count * headSize], qkv);
  native.slice(qkv.native, flat.native, [0, 0, first * headSize]);
  const byHead = flat.view([batch, time, count, headSize]);
  flat.dispose();
  return byHead;
}

/** Writes heads, (batch, time, count, headSize), to their place in qkv. */
function writeHeads(byHead: Tensor, qkv: Tensor, first: number): void {
  const [batch, time, count, headSize] = byHead.shape as [number, number, number, number];
  const flat = byHead.view([batch, time, count * headSize]);
  native.sliceWrite(flat.native, qkv.native, [0, 0, first * headSize]);
  flat.dispose();
}

/** A copy of x, whose heads may then be overwritten. */
function copyOf(x: Tensor): Tensor {
  const y = empty(x.shape, x);
  native.slice(x.native, y.native, [0, 0, 0]);
  return y;
}

/**
 * Root-mean-square norm of each query head and each key head over its own elements, before the
 * rotary embedding. Values pass unchanged.
 * @param qkv         (batch, time, (heads + 2 kvHeads) · headSize) f32 or bf16: all query heads,
 *   then all keys, then all values
 * @param queryWeight (headSize) bf16 or f32, shared by the query heads
 * @param keyWeight   (headSize) bf16 or f32, shared by the key heads
 * @returns the shape and dtype of qkv
 * @throws ShapeError if a weight's length is not the head size
 * @see Henry et al. 2020, arXiv 2010.04245; Dehghani et al. 2023, arXiv 2302.05442
 */
export function headNorm(
  qkv: Tensor,
  queryWeight: Tensor,
  keyWeight: Tensor,
  options: HeadNormOptions,
): Tensor {
  const { kvHeads, headSize, eps } = checkArguments(qkv, queryWeight, keyWeight, options);
  const { heads } = options;
  const firsts = [0, heads] as const;
  const y = copyOf(qkv);
  const kept = [queryWeight, keyWeight].map((weight, part) => {
    const first = firsts[part] as number;
    const x = headsOf(qkv, first, [part === 0 ? heads : kvHeads, headSize]);
    const normed = empty(x.shape, x);
    const rstd = empty(x.shape.slice(0, -1), { dtype: "f32", device: x.device });
    native.rmsNormForward(x.native, weight.native, normed.native, rstd.native, eps);
    writeHeads(normed, y, first);
    normed.dispose();
    return [x, weight, rstd] as const;
  });
  const backward: BackwardFunction = ([dy], saved, into, needs) => {
    const dQkv = copyOf(dy as Tensor);
    const dWeights = firsts.map((first, part) => {
      const [x, weight, rstd] = saved.slice(3 * part, 3 * part + 3) as [Tensor, Tensor, Tensor];
      const dHeads = headsOf(dy as Tensor, first, x.shape.slice(2) as [number, number]);
      const { dx, dWeight } = normGradients(
        dHeads,
        null,
        { x, weight, rstd },
        needs(part + 1),
        () => into(part + 1),
      );
      writeHeads(dx, dQkv, first);
      for (const tensor of [dHeads, dx]) tensor.dispose();
      return dWeight;
    });
    return [dQkv, ...dWeights];
  };
  const result = differentiable("headNorm", {
    inputs: [qkv, queryWeight, keyWeight],
    outputs: [y],
    saved: kept.flat(),
    backward,
  });
  for (const [x, , rstd] of kept) for (const tensor of [x, rstd]) tensor.dispose();
  return result;
}

/**
 * `headNorm` composed of plain operations: its definition, and the oracle of its test.
 * @param qkv         (batch, time, (heads + 2 kvHeads) · headSize)
 * @param queryWeight (headSize) of qkv's dtype
 * @param keyWeight   (headSize) of qkv's dtype
 * @returns the shape of qkv
 */
export function composedHeadNorm(
  qkv: Tensor,
  queryWeight: Tensor,
  keyWeight: Tensor,
  { heads, kvHeads = heads, eps = 1e-6 }: HeadNormOptions,
): Tensor {
  const headSize = queryWeight.shape[0] as number;
  const [batch, time] = qkv.shape as [number, number, number];
  const byHead = reshape(qkv, [batch, time, heads + 2 * kvHeads, headSize]);
  const [queries, keys, values] = split(byHead, [heads, kvHeads, kvHeads], 2) as [
    Tensor,
    Tensor,
    Tensor,
  ];
  const normed = [
    composedRmsNorm(queries, queryWeight, eps),
    composedRmsNorm(keys, keyWeight, eps),
    values,
  ];
  return reshape(concat(normed, 2), qkv.shape);
}
