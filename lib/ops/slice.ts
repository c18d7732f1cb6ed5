import { differentiable } from "../core/autograd.js";
import {
  argumentError,
  checkAxis,
  checkInteger,
  checkIntegers,
  checkSameDevice,
  checkSameDType,
  checkShape,
  checkTensor,
  maxRank,
  shapeText,
} from "../core/check.js";
import { zeros } from "../core/create.js";
import { ShapeError } from "../core/errors.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";
import { unsqueeze } from "./shape.js";

// Parts of tensors, and tensors made of parts. All of these operations copy.

/**
 * Start and end for some axes, by axis number; -1 is the last axis. An omitted end is the end of
 * the axis.
 */
export interface Ranges {
  readonly [axis: number]: readonly [start: number, end?: number];
}

/** The block of x that begins at `starts`, outside of the tape. */
function block(x: Tensor, starts: readonly number[], shape: readonly number[]): Tensor {
  const y = empty(shape, x);
  native.slice(x.native, y.native, starts);
  return y;
}

/** Copies a block, with a gradient: zeros in x's shape, with dy in the block's place. */
function sliced(
  op: string,
  x: Tensor,
  starts: readonly number[],
  shape: readonly number[],
): Tensor {
  const { shape: original } = x;
  return differentiable(op, {
    inputs: [x],
    outputs: [block(x, starts, shape)],
    backward: ([dy]) => {
      const dx = zeros(original, { dtype: (dy as Tensor).dtype, device: (dy as Tensor).device });
      native.sliceWrite((dy as Tensor).native, dx.native, starts);
      return [dx];
    },
  });
}

/**
 * A block of x: `slice(x, { 0: [2, 5], -1: [0, 8] })`. Bounds follow Python: negative ones count
 * from the end, and those beyond the end are clipped.
 * @throws ShapeError if nothing is left along an axis
 */
export function slice(x: Tensor, ranges: Ranges): Tensor;
/** A block of x from `starts` up to `ends`, one number for each of the first axes. */
export function slice(x: Tensor, starts: readonly number[], ends: readonly number[]): Tensor;
export function slice(
  x: Tensor,
  ranges: Ranges | readonly number[],
  ends?: readonly number[],
): Tensor {
  checkTensor("slice", "x", x);
  const starts = x.shape.map(() => 0);
  const shape = [...x.shape];
  for (const [axis, start, end] of listRanges(x, ranges, ends)) {
    const size = x.shape[axis] as number;
    const bound = (value: number) => Math.min(size, Math.max(0, value < 0 ? value + size : value));
    starts[axis] = bound(start);
    shape[axis] = bound(end) - bound(start);
    if ((shape[axis] as number) < 1) {
      throw new ShapeError(
        `[slice] ${start} to ${end} is empty along axis ${axis} of ${shapeText(x.shape)}; empty tensors do not exist`,
      );
    }
  }
  return sliced("slice", x, starts, shape);
}

/** Axis, start and end of each given range. */
function listRanges(x: Tensor, ranges: unknown, ends: unknown): [number, number, number][] {
  if (Array.isArray(ranges) || ends !== undefined) {
    const what = `an array of at most ${x.rank} integers`;
    const first = checkIntegers("slice", "starts", ranges, what);
    const last = checkIntegers(
      "slice",
      "ends",
      ends,
      `as many integers as starts, ${first.length},`,
    );
    if (first.length > x.rank) throw argumentError("slice", what, "starts", first);
    if (first.length !== last.length) {
      throw argumentError("slice", `as many integers as starts, ${first.length},`, "ends", last);
    }
    return first.map((start, axis) => [axis, start, last[axis] as number]);
  }
  const what = "an object of [start, end] by axis";
  const isPlain =
    typeof ranges === "object" &&
    ranges !== null &&
    Object.getPrototypeOf(ranges) === Object.prototype;
  if (!isPlain) throw argumentError("slice", what, "ranges", ranges);
  const seen = new Set<number>();
  return Object.entries(ranges).map(([key, range]: [string, unknown]) => {
    const axis = checkAxis(
      "slice",
      "an axis of ranges",
      /^-?\d+$/.test(key) ? Number(key) : key,
      x.rank,
    );
    if (seen.has(axis)) throw argumentError("slice", "axes that are all different", "ranges", key);
    seen.add(axis);
    const pair: unknown[] = Array.isArray(range) ? [...range] : [];
    if (pair.length < 1 || pair.length > 2)
      throw argumentError("slice", "[start, end]", `axis ${axis}`, range);
    const [start, end = x.shape[axis]] = pair;
    checkInteger("slice", `the start of axis ${axis}`, start);
    checkInteger("slice", `the end of axis ${axis}`, end);
    return [axis, start, end];
  });
}

/**
 * Splits x along an axis.
 * @param sizes the size of every part (the last may be smaller), or a list of sizes, which must add
 *   up to the axis
 */
export function split(x: Tensor, sizes: number | readonly number[], axis = 0): Tensor[] {
  checkTensor("split", "x", x);
  const along = checkAxis("split", "axis", axis, x.rank);
  const length = x.shape[along] as number;
  const parts = partSizes(sizes, length, along);
  let start = 0;
  return parts.map((size) => {
    const starts = x.shape.map((_, other) => (other === along ? start : 0));
    start += size;
    return sliced("split", x, starts, x.shape.with(along, size));
  });
}

function partSizes(sizes: unknown, length: number, axis: number): number[] {
  if (!Array.isArray(sizes)) {
    checkInteger("split", "sizes", sizes, { min: 1 });
    const count = Math.ceil(length / sizes);
    return Array.from({ length: count }, (_, part) => Math.min(sizes, length - part * sizes));
  }
  const parts = checkIntegers("split", "sizes", sizes, "an array of positive integers");
  if (parts.some((size) => size < 1)) {
    throw argumentError("split", "an array of positive integers", "sizes", parts);
  }
  const total = parts.reduce((sum, size) => sum + size, 0);
  if (total !== length) {
    throw new ShapeError(
      `[split] sizes ${shapeText(parts)} add up to ${total}, but axis ${axis} has ${length}`,
    );
  }
  return parts;
}

/** Checks for an array of at least one tensor, all of one dtype and device. */
function checkParts(op: string, tensors: unknown): readonly [Tensor, ...Tensor[]] {
  if (!Array.isArray(tensors) || tensors.length === 0) {
    throw argumentError(op, "an array of at least one tensor", "tensors", tensors);
  }
  const parts: unknown[] = [...tensors];
  parts.forEach((part, i) => {
    checkTensor(op, `tensors[${i}]`, part);
  });
  const [first, ...others] = parts as [Tensor, ...Tensor[]];
  checkSameDevice(op, first, ...others);
  checkSameDType(op, first, ...others);
  return [first, ...others];
}

/**
 * Concatenates tensors along an axis.
 * @throws ShapeError if their other axes differ, or they have none
 */
export function concat(tensors: readonly Tensor[], axis = 0): Tensor {
  const parts = checkParts("concat", tensors);
  const [first] = parts;
  if (first.rank === 0) {
    throw new ShapeError("[concat] tensors without axes cannot be joined; stack gives them one");
  }
  const along = checkAxis("concat", "axis", axis, first.rank);
  parts.forEach((part, i) => {
    const fits =
      part.rank === first.rank &&
      part.shape.every((size, other) => other === along || size === first.shape[other]);
    if (!fits) {
      throw new ShapeError(
        `[concat] shapes ${shapeText(first.shape)} and ${shapeText(part.shape)} (tensors[${i}]) differ in more than ` +
          `axis ${along}`,
      );
    }
  });
  return joined("concat", parts, along);
}

function joined(op: string, parts: readonly [Tensor, ...Tensor[]], along: number): Tensor {
  const [first] = parts;
  const sizes = parts.map((part) => part.shape[along] as number);
  const starts: number[][] = [];
  let length = 0;
  for (const size of sizes) {
    starts.push(first.shape.map((_, axis) => (axis === along ? length : 0)));
    length += size;
  }
  const shapes = parts.map((part) => part.shape);
  const shape = first.shape.with(along, length);
  return differentiable(op, {
    inputs: parts,
    outputs: [assemble(parts, shape, starts, along)],
    backward: ([dy], _saved, _into, needs) =>
      shapes.map((part, i) => (needs(i) ? block(dy as Tensor, starts[i] as number[], part) : null)),
  });
}

function assemble(
  parts: readonly [Tensor, ...Tensor[]],
  shape: readonly number[],
  starts: readonly number[][],
  along: number,
): Tensor {
  const [first] = parts;
  const y = empty(shape, first);
  if (first.shape.slice(0, along).every((size) => size === 1)) {
    // Each part is a contiguous piece of the result and is written as a whole.
    let offset = 0;
    for (const part of parts) {
      const place = y.view(part.shape, offset);
      native.slice(
        part.native,
        place.native,
        part.shape.map(() => 0),
      );
      place.dispose();
      offset += part.size;
    }
    return y;
  }
  native.fill(y.native, 0); // allocates the memory; the parts are written into it one by one
  parts.forEach((part, i) => {
    native.sliceWrite(part.native, y.native, starts[i] as number[]);
  });
  return y;
}

/** Stacks tensors of one shape along a new axis. */
export function stack(tensors: readonly Tensor[], axis = 0): Tensor {
  const parts = checkParts("stack", tensors);
  const [first] = parts;
  const along = checkAxis("stack", "axis", axis, first.rank + 1);
  if (first.rank === maxRank) {
    throw new ShapeError(
      `[stack] ${shapeText(first.shape)} has ${maxRank} axes already, the most there can be`,
    );
  }
  parts.forEach((part, i) => {
    if (shapeText(part.shape) !== shapeText(first.shape)) {
      throw new ShapeError(
        `[stack] shapes ${shapeText(first.shape)} and ${shapeText(part.shape)} (tensors[${i}]) differ`,
      );
    }
  });
  const raised = parts.map((part) => unsqueeze(part, along)) as [Tensor, ...Tensor[]];
  const y = joined("stack", raised, along);
  for (const part of raised) part.dispose();
  return y;
}

/**
 * Copies values over one row of a table, in place. Not differentiable.
 * @param table (rows, ...)
 * @param row index from 0
 * @param values (...) of the table's dtype
 * @throws ShapeError, DTypeError, DeviceError, ArgumentError for invalid arguments
 */
export function writeRow(table: Tensor, row: number, values: Tensor): void {
  const op = "writeRow";
  checkTensor(op, "table", table);
  checkTensor(op, "values", values);
  checkSameDevice(op, table, values);
  checkSameDType(op, table, values);
  if (table.rank === 0) throw new ShapeError(`[${op}] expected a table with rows, got a scalar`);
  checkInteger(op, "row", row, { min: 0, max: (table.shape[0] as number) - 1 });
  checkShape(op, "values", values, table.shape.slice(1), "a row of table");
  const place = table.view(values.shape, row * values.size);
  native.slice(
    values.native,
    place.native,
    values.shape.map(() => 0),
  );
  place.dispose();
  table.changed(op);
}
