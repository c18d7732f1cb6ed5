import { argumentError, explainTensors } from "./check-values.js";
import { deviceName, sameDevice } from "./device.js";
import { DeviceError, DTypeError, ShapeError } from "./errors.js";
import { type DType, Tensor } from "./tensor.js";

export * from "./check-values.js";
export { checkDevice } from "./device.js";

// Argument checks shared by tensors, operations, modules and optimizers. Everything is checked
// before a native call, so a call that throws has changed nothing. Messages read "[op] expected X
// for name but received Y".

/** Largest number of axes of a tensor. */
export const maxRank = 8;

/** Formats a shape for messages: `[2,3]`. */
export const shapeText = (shape: readonly number[]): string => `[${shape.join(",")}]`;

explainTensors({
  isLikeOne: (value) => value instanceof Tensor,
  describe: (value) =>
    Tensor.isTensor(value) ? `a tensor of ${value.dtype} ${shapeText(value.shape)}` : null,
});

// ---- tensors

/**
 * Checks for a tensor made by this library that still has its memory. Look-alikes
 * (`Object.create(t)`, a Proxy, a tensor of another copy of the library) are refused.
 * @throws ArgumentError, DisposedError
 */
export function checkTensor(op: string, name: string, value: unknown): asserts value is Tensor {
  if (!Tensor.isTensor(value)) throw argumentError(op, "a tensor", name, value);
  value.checkAlive(op);
}

/** Checks for a tensor of one of the dtypes. */
export function checkDType(
  op: string,
  name: string,
  value: unknown,
  ...allowed: DType[]
): asserts value is Tensor {
  checkTensor(op, name, value);
  if (!allowed.includes(value.dtype)) {
    throw new DTypeError(
      `[${op}] expected dtype ${allowed.join(" or ")} for ${name} but received ${value.dtype}`,
    );
  }
}

/** Checks for a tensor of f32 or bf16. */
export function checkFloat(op: string, name: string, value: unknown): asserts value is Tensor {
  checkDType(op, name, value, "f32", "bf16");
}

/** Checks that all tensors are on the device of the first. */
export function checkSameDevice(op: string, first: Tensor, ...others: readonly Tensor[]): void {
  for (const other of others) {
    if (!sameDevice(first.device, other.device)) {
      throw new DeviceError(
        `[${op}] expected tensors on one device but received ${deviceName(first.device)} and ` +
          `${deviceName(other.device)}: copy one with tensor(await x.toArray(), { shape, dtype, device })`,
      );
    }
  }
}

/** Checks that all tensors have the dtype of the first. There is no implicit promotion. */
export function checkSameDType(op: string, first: Tensor, ...others: readonly Tensor[]): void {
  for (const other of others) {
    if (first.dtype !== other.dtype) {
      throw new DTypeError(
        `[${op}] expected tensors of one dtype but received ${first.dtype} and ${other.dtype}: ` +
          "convert one with cast(x, dtype)",
      );
    }
  }
}

/** One integer for each token of x: i32 (batch, time) on the device of x. */
export function checkPerToken(op: string, name: string, values: unknown, x: Tensor): void {
  checkDType(op, name, values, "i32");
  checkSameDevice(op, x, values);
  checkShape(op, name, values, x.shape.slice(0, 2), "batch and time");
}

/** The first token that each token of x may see. */
export function checkFirstKey(op: string, firstKey: unknown, x: Tensor): void {
  checkPerToken(op, "firstKey", firstKey, x);
}

/** Checks the number of axes. */
export function checkRank(op: string, name: string, x: Tensor, ...allowed: number[]): void {
  if (!allowed.includes(x.shape.length)) {
    const axes = allowed.length === 1 && allowed[0] === 1 ? "axis" : "axes";
    throw new ShapeError(
      `[${op}] expected ${allowed.join(" or ")} ${axes} for ${name} but received shape ${shapeText(x.shape)}`,
    );
  }
}

/**
 * Checks for an exact shape; `null` in it allows any size.
 * @param reason origin of the expectation, such as `last axis of x [4,128,2048]`
 */
export function checkShape(
  op: string,
  name: string,
  x: Tensor,
  expected: readonly (number | null)[],
  reason?: string,
): void {
  const fits =
    x.shape.length === expected.length &&
    expected.every((size, axis) => size === null || size === x.shape[axis]);
  if (fits) return;
  const wanted = `[${expected.map((size) => size ?? "any").join(",")}]`;
  throw new ShapeError(
    `[${op}] expected shape ${wanted} for ${name}${reason ? ` (${reason})` : ""} ` +
      `but received ${shapeText(x.shape)}`,
  );
}

/**
 * The common shape of two shapes by NumPy's broadcasting rule: aligned at the last axis, with sizes
 * equal or 1.
 * @throws ShapeError naming the first axis of the result that does not fit
 */
export function broadcastShapes(op: string, a: readonly number[], b: readonly number[]): number[] {
  const rank = Math.max(a.length, b.length);
  const shape: number[] = [];
  for (let axis = 0; axis < rank; ++axis) {
    const sizeA = a[axis - rank + a.length] ?? 1;
    const sizeB = b[axis - rank + b.length] ?? 1;
    if (sizeA !== sizeB && sizeA !== 1 && sizeB !== 1) {
      throw new ShapeError(
        `[${op}] shapes ${shapeText(a)} and ${shapeText(b)} do not broadcast: ` +
          `axis ${axis} is ${sizeA} and ${sizeB}`,
      );
    }
    shape.push(sizeA === 1 ? sizeB : sizeA);
  }
  return shape;
}

// ---- lists and axes

/**
 * Checks for an array or list of numbers. Returns a copy, so that later changes cannot bypass the
 * check.
 */
export function checkIntegers(op: string, name: string, value: unknown, what: string): number[] {
  if (!Array.isArray(value)) throw argumentError(op, what, name, value);
  const copy: unknown[] = [...value];
  if (copy.every((entry) => Number.isSafeInteger(entry))) return copy as number[];
  throw argumentError(op, what, name, value);
}

/**
 * Checks for a shape: at most 8 axes, every size a positive integer (empty tensors do not exist).
 * Returns a copy.
 */
export function checkShapeArgument(op: string, name: string, value: unknown): number[] {
  const what = `an array of at most ${maxRank} positive integers`;
  const shape = checkIntegers(op, name, value, what);
  if (shape.length > maxRank || shape.some((size) => size < 1)) {
    throw argumentError(op, what, name, shape);
  }
  return shape;
}

/**
 * Checks for an axis of a tensor of the given rank; negative axes count from the last. Returns it
 * in 0..rank-1.
 */
export function checkAxis(op: string, name: string, value: unknown, rank: number): number {
  if (Number.isSafeInteger(value)) {
    const axis = value as number;
    if (axis >= -rank && axis < rank) return axis < 0 ? axis + rank : axis;
  }
  const range =
    rank === 0 ? "no axis (the tensor has none)" : `an axis from ${-rank} to ${rank - 1}`;
  throw argumentError(op, range, name, value);
}

/** Checks for one axis or an array of distinct axes. Returns them in 0..rank-1, ascending. */
export function checkAxes(op: string, name: string, value: unknown, rank: number): number[] {
  const list: unknown[] = Array.isArray(value) ? [...value] : [value];
  const axes = list.map((axis) => checkAxis(op, name, axis, rank)).sort((a, b) => a - b);
  if (new Set(axes).size !== axes.length) {
    throw argumentError(op, "axes that are all different", name, value);
  }
  return axes;
}
