import { differentiable, gradientsEnabled, noGrad } from "../core/autograd.js";
import {
  checkArray,
  checkFloat,
  checkFunction,
  checkInteger,
  checkNumber,
  checkObject,
  checkOptions,
  checkRank,
  checkSameDevice,
  checkSameDType,
  checkShape,
  shapeText,
} from "../core/check.js";
import { full } from "../core/create.js";
import { ArgumentError, AutogradError, ShapeError } from "../core/errors.js";
import { rowsAreIndependent } from "../core/independent-rows.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";
import { add, mul } from "./binary.js";
import { type DropoutOptions, dropout } from "./dropout.js";
import { composedLinear, linear } from "./linear.js";
import { concat, slice } from "./slice.js";

/** A linear layer that is not trained: y = x · weightᵀ + bias, in whatever precision. */
export interface FrozenLinear {
  /** (outputs, inputs) */
  readonly weight: Tensor;
  /** (outputs), or null */
  readonly bias: Tensor | null;
  /** Computes y, (..., outputs), which belongs to the caller. */
  forward(x: Tensor): Tensor;
  /** The gradient of x, dy · weight, which belongs to the caller. */
  inputGradient(dy: Tensor): Tensor;
}

/** Adapters of matrices that one linear layer holds below each other. */
export interface LowRankAdapters {
  /** (count · rank, inputs): the first halves, below each other. */
  down: Tensor;
  /** (rows, rank): the second halves, below each other. */
  up: Tensor;
  /** The outputs that each adapter changes, in ascending order. */
  parts: readonly { firstRow: number; rows: number }[];
  /** Factor of the product of both halves. */
  scale: number;
  /** Dropout of each adapter's input; null for an adapter without. Default: none has any. */
  dropouts?: readonly (DropoutOptions | null)[];
}

/** A frozen linear layer in the dtype of its weight. */
export function frozenLinear(weight: Tensor, bias: Tensor | null = null): FrozenLinear {
  return {
    weight,
    bias,
    forward: (x) => linear(x, weight, bias),
    inputGradient: (dy) => {
      const [outputs, inputs] = weight.shape as [number, number];
      const dx = empty([...dy.shape.slice(0, -1), inputs], dy);
      const rows = [dy.view([dy.size / outputs, outputs]), dx.view([dx.size / inputs, inputs])];
      const [dyRows, dxRows] = rows as [Tensor, Tensor];
      native.gemm(dyRows.native, weight.native, dxRows.native, false, false, false);
      for (const view of rows) view.dispose();
      return dx;
    },
  };
}

/**
 * A frozen linear layer with low-rank adapters (Hu et al. 2021, arXiv 2106.09685): to the outputs of
 * each adapter it adds scale · up · down · x. The adapters' products add to the layer's own output,
 * and their gradient of x to the layer's own, so neither is read or written once more. The first
 * halves are one product. So are the second halves, with zeros where an adapter does not reach: by
 * estimate, a few more columns of a product cost less than a pass over the outputs.
 * @param x (..., inputs) f32 or bf16
 * @returns (..., outputs)
 * @throws AutogradError if the layer's weight or bias needs a gradient
 * @throws ShapeError, DTypeError, DeviceError, ArgumentError for arguments that do not fit
 */
export function adaptedLinear(x: Tensor, layer: FrozenLinear, adapters: LowRankAdapters): Tensor {
  checkAdapters(x, layer, adapters);
  const { down, up, parts, scale } = adapters;
  const [width, inputs] = down.shape as [number, number];
  const outputs = layer.weight.shape[0] as number;
  const rows = x.size / inputs;
  const xRows = x.view([rows, inputs]);
  const y = made(
    "layer.forward",
    noGrad(() => layer.forward(x)),
    x,
    outputs,
  );
  const alike = rowsAreIndependent();
  const inner = innerOf(xRows, adapters, alike);
  const scaled = scale === 1 ? inner : times(inner, scale);
  const block = blockOf(up, parts, outputs);
  const yRows = y.view([rows, outputs]);
  native.gemmAccumulate(scaled.native, block.native, yRows.native, false, true, alike);
  const result = differentiable("adaptedLinear", {
    inputs: [x, down, up],
    outputs: [y],
    saved: [x, layer.weight, down, block, scaled],
    backward: ([dy], saved, into, needs) => {
      const [x, , down, block, scaled] = saved as [Tensor, Tensor, Tensor, Tensor, Tensor];
      const dyRows = (dy as Tensor).view([rows, outputs]);
      const xRows = x.view([rows, inputs]);
      let dUp: Tensor | null = null;
      if (needs(2)) {
        const target = into(2);
        dUp = target?.tensor ?? empty(up.shape, block);
        upGradient(dyRows, scaled, dUp, parts, target?.accumulate ?? false);
        if (target) dUp = null;
      }
      if (!needs(0) && !needs(1)) return [null, null, dUp];
      const dScaled = empty([rows, width], dyRows);
      native.gemm(dyRows.native, block.native, dScaled.native, false, false, false);
      const dInner = scale === 1 ? dScaled : times(dScaled, scale);
      let dDown: Tensor | null = null;
      if (needs(1)) {
        const target = into(1);
        dDown = target?.tensor ?? empty(down.shape, down);
        downGradient(dInner, xRows, dDown, adapters, target?.accumulate ?? false);
        if (target) dDown = null;
      }
      if (!needs(0)) return [null, dDown, dUp];
      const dx = made("layer.inputGradient", layer.inputGradient(dy as Tensor), x, inputs);
      addInputGradient(dInner, down, dx.view([rows, inputs]), adapters);
      return [dx, dDown, dUp];
    },
  });
  const spare = [xRows, yRows, inner, scaled, block].filter((tensor) => tensor !== up);
  for (const tensor of new Set(spare)) tensor.dispose();
  return result;
}

/** The vectors between the halves, (rows, count · rank). */
function innerOf(
  xRows: Tensor,
  { down, parts, dropouts }: LowRankAdapters,
  alike: boolean,
): Tensor {
  const rows = xRows.shape[0] as number;
  const width = down.shape[0] as number;
  const inner = empty([rows, width], xRows);
  if (!dropouts) {
    native.gemm(xRows.native, down.native, inner.native, false, true, alike);
    return inner;
  }
  const rank = width / parts.length;
  if (parts.length > 1) native.fill(inner.native, 0); // allocates the memory
  for (const [index, dropped] of dropouts.entries()) {
    const seen = droppedRows(xRows, dropped);
    const half = rowsOf(down, index * rank, rank);
    const own = parts.length > 1 ? empty([rows, rank], xRows) : inner;
    native.gemm(seen.native, half.native, own.native, false, true, alike);
    if (own !== inner) {
      native.sliceWrite(own.native, inner.native, [0, index * rank]);
      own.dispose();
    }
    half.dispose();
    if (seen !== xRows) seen.dispose();
  }
  return inner;
}

/** x with elements dropped; x itself without dropout. */
function droppedRows(x: Tensor, options: DropoutOptions | null): Tensor {
  if (options === null) return x;
  const { rate, seed, offset = 0 } = options;
  const y = empty(x.shape, x);
  native.dropout(x.native, y.native, rate, seed, offset);
  return y;
}

/**
 * The second halves as one matrix (outputs, count · rank): each has the columns of its adapter, and
 * zeros stand where an adapter changes nothing. `up` itself if that is this matrix.
 */
function blockOf(up: Tensor, parts: LowRankAdapters["parts"], outputs: number): Tensor {
  const [rows, rank] = up.shape as [number, number];
  if (parts.length === 1 && rows === outputs) return up;
  const block = empty([outputs, parts.length * rank], up);
  native.fill(block.native, 0);
  let at = 0;
  for (const [index, part] of parts.entries()) {
    const half = rowsOf(up, at, part.rows);
    native.sliceWrite(half.native, block.native, [part.firstRow, index * rank]);
    half.dispose();
    at += part.rows;
  }
  return block;
}

/** Gradient of the second halves, from the product that has their blocks in it. */
function upGradient(
  dy: Tensor,
  scaled: Tensor,
  gradient: Tensor,
  parts: LowRankAdapters["parts"],
  accumulate: boolean,
): void {
  const [rows, rank] = gradient.shape as [number, number];
  const outputs = dy.shape[1] as number;
  if (parts.length === 1 && rows === outputs) {
    const multiply = accumulate ? native.gemmAccumulate : native.gemm;
    multiply(dy.native, scaled.native, gradient.native, true, false, false);
    return;
  }
  const whole = empty([outputs, parts.length * rank], gradient);
  native.gemm(dy.native, scaled.native, whole.native, true, false, false);
  let at = 0;
  for (const [index, part] of parts.entries()) {
    const place = rowsOf(gradient, at, part.rows);
    const from = [part.firstRow, index * rank];
    if (accumulate) {
      const own = empty([part.rows, rank], gradient);
      native.slice(whole.native, own.native, from);
      native.accumulate(own.native, place.native);
      own.dispose();
    } else native.slice(whole.native, place.native, from);
    place.dispose();
    at += part.rows;
  }
  whole.dispose();
}

/** Gradient of the first halves. Dropout drops the elements of x again. */
function downGradient(
  dInner: Tensor,
  xRows: Tensor,
  gradient: Tensor,
  { parts, dropouts }: LowRankAdapters,
  accumulate: boolean,
): void {
  const multiply = accumulate ? native.gemmAccumulate : native.gemm;
  if (!dropouts) {
    multiply(dInner.native, xRows.native, gradient.native, true, false, false);
    return;
  }
  const rank = (gradient.shape[0] as number) / parts.length;
  for (const [index, dropped] of dropouts.entries()) {
    const seen = droppedRows(xRows, dropped);
    const own = columnsOf(dInner, index * rank, rank);
    const place = rowsOf(gradient, index * rank, rank);
    multiply(own.native, seen.native, place.native, true, false, false);
    for (const tensor of [place, own]) tensor.dispose();
    if (seen !== xRows) seen.dispose();
  }
}

/** Adds the adapters' gradient of x to dx. */
function addInputGradient(
  dInner: Tensor,
  down: Tensor,
  dx: Tensor,
  { parts, dropouts }: LowRankAdapters,
): void {
  if (!dropouts) {
    native.gemmAccumulate(dInner.native, down.native, dx.native, false, false, false);
    return;
  }
  const rank = (down.shape[0] as number) / parts.length;
  for (const [index, dropped] of dropouts.entries()) {
    const own = columnsOf(dInner, index * rank, rank);
    const half = rowsOf(down, index * rank, rank);
    if (dropped === null) {
      native.gemmAccumulate(own.native, half.native, dx.native, false, false, false);
    } else {
      const seen = empty(dx.shape, dx);
      native.gemm(own.native, half.native, seen.native, false, false, false);
      const { rate, seed, offset = 0 } = dropped;
      native.dropout(seen.native, seen.native, rate, seed, offset);
      native.accumulate(seen.native, dx.native);
      seen.dispose();
    }
    for (const tensor of [own, half]) tensor.dispose();
  }
}

/** Rows of a matrix, without a copy. */
function rowsOf(matrix: Tensor, first: number, count: number): Tensor {
  const columns = matrix.shape[1] as number;
  return matrix.view([count, columns], first * columns);
}

/** Columns of a matrix, copied unless they are all of it. */
function columnsOf(matrix: Tensor, first: number, count: number): Tensor {
  const [rows, columns] = matrix.shape as [number, number];
  if (count === columns) return matrix.view([rows, columns]);
  const part = empty([rows, count], matrix);
  native.slice(matrix.native, part.native, [0, first]);
  return part;
}

function times(x: Tensor, factor: number): Tensor {
  const { dtype, device } = x;
  const [number, y] = [
    full([1], factor, { dtype: dtype as "f32" | "bf16", device }),
    empty(x.shape, x),
  ];
  native.binary(x.native, number.native, y.native, "mul");
  number.dispose();
  return y;
}

/** Checks what a layer has made: (..., width), with the rows and the dtype of x. */
function made(name: string, result: Tensor, x: Tensor, width: number): Tensor {
  const what = `the result of ${name}`;
  checkFloat("adaptedLinear", what, result);
  checkSameDevice("adaptedLinear", x, result);
  checkSameDType("adaptedLinear", x, result);
  checkShape("adaptedLinear", what, result, [...x.shape.slice(0, -1), width], "the rows of x");
  return result;
}

function checkAdapters(x: Tensor, layer: FrozenLinear, adapters: LowRankAdapters): void {
  const op = "adaptedLinear";
  checkFloat(op, "x", x);
  checkObject(op, "layer", layer, "a frozen layer, as frozenLinear() makes it");
  const { weight, bias } = layer;
  checkFunction(op, "layer.forward", layer.forward);
  checkFunction(op, "layer.inputGradient", layer.inputGradient);
  checkFloat(op, "layer.weight", weight);
  checkSameDevice(op, x, weight);
  checkRank(op, "layer.weight", weight, 2);
  if (bias !== null) {
    checkFloat(op, "layer.bias", bias);
    checkShape(op, "layer.bias", bias, [weight.shape[0] as number], "first axis of layer.weight");
  }
  if (x.rank === 0) throw new ShapeError(`[${op}] expected at least 1 axis for x, got shape []`);
  const inputs = x.shape.at(-1) as number;
  checkShape(op, "layer.weight", weight, [null, inputs], `last axis of x ${shapeText(x.shape)}`);
  if (gradientsEnabled() && (weight.requiresGrad || bias?.requiresGrad)) {
    throw new AutogradError(
      `[${op}] expected a layer that is not trained: freeze() its module, or add an adapter's output to linear()'s`,
    );
  }
  checkObject(op, "adapters", adapters, "adapters: { down, up, parts, scale }");
  checkOptions(op, adapters, ["down", "up", "parts", "scale", "dropouts"]);
  const { down, up, parts, scale, dropouts } = adapters;
  for (const [name, half] of [
    ["down", down],
    ["up", up],
  ] as const) {
    checkFloat(op, name, half);
    checkSameDevice(op, x, half);
    checkSameDType(op, x, half);
    checkRank(op, name, half, 2);
  }
  checkNumber(op, "scale", scale);
  checkArray(op, "parts", parts);
  let end = 0;
  let rows = 0;
  for (const part of parts) {
    checkObject(op, "a part", part, "the outputs of an adapter: { firstRow, rows }");
    const most = weight.shape[0] as number;
    checkInteger(op, "firstRow of a part", part.firstRow, { min: end, max: most - 1 });
    checkInteger(op, "rows of a part", part.rows, { min: 1, max: most - part.firstRow });
    end = part.firstRow + part.rows;
    rows += part.rows;
  }
  const rank = up.shape[1] as number;
  checkShape(op, "down", down, [parts.length * rank, inputs], "the parts, the rank and x");
  checkShape(op, "up", up, [rows, rank], "the rows of the parts");
  if (dropouts === undefined) return;
  checkArray(op, "dropouts", dropouts);
  if (dropouts.length !== parts.length) {
    throw new ArgumentError(
      `[${op}] expected dropouts for ${parts.length} parts, got ${dropouts.length}`,
    );
  }
}

/**
 * `adaptedLinear` composed of plain operations: its definition, and the oracle of its test.
 * @param x      (..., inputs)
 * @param weight (outputs, inputs)
 */
export function composedAdaptedLinear(
  x: Tensor,
  weight: Tensor,
  bias: Tensor | null,
  { down, up, parts, scale, dropouts }: LowRankAdapters,
): Tensor {
  const rank = up.shape[1] as number;
  const outputs = weight.shape[0] as number;
  const pieces: Tensor[] = [];
  const zeros = (size: number): void => {
    if (size > 0) pieces.push(mul(slice(composedLinear(x, weight), { [-1]: [0, size] }), 0));
  };
  let [at, row] = [0, 0];
  for (const [index, part] of parts.entries()) {
    zeros(part.firstRow - at);
    const dropped = dropouts?.[index];
    const seen = dropped ? dropout(x, dropped) : x;
    const half = slice(down, { 0: [index * rank, (index + 1) * rank] });
    const other = slice(up, { 0: [row, row + part.rows] });
    pieces.push(mul(composedLinear(composedLinear(seen, half), other), scale));
    at = part.firstRow + part.rows;
    row += part.rows;
  }
  zeros(outputs - at);
  return add(composedLinear(x, weight, bias), concat(pieces, -1));
}
