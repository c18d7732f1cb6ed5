import { differentiable } from "../core/autograd.js";
import { checkDType, checkInteger, checkRank, checkSameDevice, checkShape } from "../core/check.js";
import { arange, zeros } from "../core/create.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";
import { eq } from "./compare.js";
import { sum } from "./reduce.js";
import { unsqueeze } from "./shape.js";
import { where } from "./where.js";

/**
 * Sums of elements by segment: y[s] is the sum of all x[i] with segments[i] = s, in the order of i.
 * @param x        (elements) f32
 * @param segments (elements) i32, each from 0 to count - 1, in any order
 * @param count    number of segments
 * @returns (count) f32; 0 for a segment without elements
 * @throws NativeError at the next wait if a segment is not below count
 */
export function segmentSum(x: Tensor, segments: Tensor, count: number): Tensor {
  const op = "segmentSum";
  checkDType(op, "x", x, "f32");
  checkRank(op, "x", x, 1);
  checkDType(op, "segments", segments, "i32");
  checkSameDevice(op, x, segments);
  checkShape(op, "segments", segments, x.shape, "elements of x");
  checkInteger(op, "count", count, { min: 1, max: 2 ** 31 - 1 });
  const y = zeros([count], { device: x.device });
  native.scatterAdd(x.native, segments.native, y.native, 0);
  return differentiable(op, {
    inputs: [x],
    outputs: [y],
    saved: [segments],
    backward: ([dy], [ids]) => {
      const dx = empty((ids as Tensor).shape, dy as Tensor);
      native.gather((dy as Tensor).native, (ids as Tensor).native, dx.native, 0);
      return [dx];
    },
  });
}

/**
 * `segmentSum` composed of plain operations: its definition, and the oracle of its test.
 * @param x        (elements)
 * @param segments (elements) i32
 * @returns (count)
 */
export function composedSegmentSum(x: Tensor, segments: Tensor, count: number): Tensor {
  const numbers = unsqueeze(arange(count, { dtype: "i32", device: x.device }), 1); // (count, 1)
  return sum(where(eq(unsqueeze(segments, 0), numbers), unsqueeze(x, 0), 0), 1);
}
