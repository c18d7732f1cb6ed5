import { differentiable } from "../core/autograd.js";
import { checkAxis, checkFloat } from "../core/check.js";
import { native } from "../core/native.js";
import { scope } from "../core/scope.js";
import { empty, type Tensor } from "../core/tensor.js";
import { div, sub } from "./binary.js";
import { max, sum } from "./reduce.js";
import { reshape, transpose } from "./shape.js";
import { exp, log } from "./unary.js";

/**
 * e^x / sum(e^x) along an axis, without overflow, computed in f32.
 * @param axis default: the last
 */
export function softmax(x: Tensor, axis = -1): Tensor {
  return normalized("softmax", x, axis);
}

/**
 * log(softmax(x)) along an axis, computed as x - max - log(sum(e^(x - max))), which is exact even
 * where softmax underflows to 0.
 * @param axis default: the last
 */
export function logSoftmax(x: Tensor, axis = -1): Tensor {
  return normalized("logSoftmax", x, axis);
}

function normalized(op: "softmax" | "logSoftmax", x: Tensor, axis: number): Tensor {
  checkFloat(op, "x", x);
  const along = checkAxis(op, "axis", axis, Math.max(1, x.rank));
  if (x.rank === 0) return scope(() => reshape(overLastAxis(op, reshape(x, [1])), []));
  if (along === x.rank - 1) return overLastAxis(op, x);
  return scope(() => transpose(overLastAxis(op, transpose(x, along, -1)), along, -1));
}

function overLastAxis(op: "softmax" | "logSoftmax", x: Tensor): Tensor {
  const log = op === "logSoftmax";
  const y = empty(x.shape, x);
  native.softmax(x.native, y.native, log);
  return differentiable(op, {
    inputs: [x],
    outputs: [y],
    saved: [y],
    backward: ([dy], [y]) => {
      const dx = empty((y as Tensor).shape, y as Tensor);
      native.softmaxBackward((dy as Tensor).native, (y as Tensor).native, dx.native, log);
      return [dx];
    },
  });
}

/**
 * x - max(x) along an axis. The shift keeps e^x finite and changes neither softmax nor its
 * gradient.
 */
function shifted(x: Tensor, axis: number): Tensor {
  return sub(x, max(x.detach(), axis, { keepDims: true }));
}

/**
 * `softmax` composed of plain operations: its definition, and the oracle of its test.
 * @param x of any shape
 * @returns the shape of x
 */
export function composedSoftmax(x: Tensor, axis = -1): Tensor {
  const e = exp(shifted(x, axis));
  return div(e, sum(e, axis, { keepDims: true }));
}

/** `logSoftmax` composed of plain operations, with the shapes of `composedSoftmax`. */
export function composedLogSoftmax(x: Tensor, axis = -1): Tensor {
  const y = shifted(x, axis);
  return sub(y, log(sum(exp(y), axis, { keepDims: true })));
}
