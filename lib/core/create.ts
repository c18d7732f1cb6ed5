/** Creates tensors from numbers: one value, a range, or arrays. */
import "./backward.js"; // a tensor made here can go backward
import {
  argumentError,
  checkBoolean,
  checkDevice,
  checkNumber,
  checkOptions,
  describe,
  shapeText,
} from "./check.js";
import { type Device, defaultDevice } from "./device.js";
import { ArgumentError, DTypeError, ShapeError } from "./errors.js";
import { isFp8 } from "./fp8.js";
import { hostArray } from "./host-array.js";
import { type DType, native, typedNativeError } from "./native.js";
import { empty as allocated, Tensor } from "./tensor.js";

/** Options of a new tensor. Default: f32, on the default device, without a gradient. */
export interface TensorOptions {
  dtype?: DType;
  device?: Device;
  requiresGrad?: boolean;
}

/** Arrays that hold a tensor's values. */
export type TypedArray = Float32Array | Float64Array | Int32Array | Uint16Array | Uint8Array;

/** Numbers in nested arrays, with as many levels as the tensor has axes. */
export type NestedNumbers = number | readonly NestedNumbers[];

const commonOptions = ["dtype", "device", "requiresGrad"];

/** Checks the options of a new tensor. Its dtype is checked where the tensor is made. */
function checked(
  op: string,
  options: TensorOptions,
  defaultDType: DType,
  own: readonly string[] = [],
): Required<TensorOptions> {
  checkOptions(op, options, [...own, ...commonOptions]);
  const { dtype = defaultDType, device = defaultDevice(), requiresGrad = false } = options;
  checkDevice(op, "device", device);
  checkBoolean(op, "requiresGrad", requiresGrad);
  if (isFp8(dtype)) {
    throw new DTypeError(
      `[${op}] expected dtype f32, bf16 or i32 but received ${dtype}: only products in fp8 make such tensors`,
    );
  }
  if (requiresGrad && dtype === "i32") {
    throw new DTypeError(`[${op}] a tensor of i32 cannot require a gradient`);
  }
  return { dtype, device, requiresGrad };
}

/**
 * Checks that a value for an i32 tensor is whole. The kernel would report it only at the next wait.
 */
function checkWhole(op: string, name: string, value: number, dtype: DType): void {
  if (dtype !== "i32" || (value | 0) === value) return;
  throw argumentError(op, "a whole number of 32 bits (the tensor is i32)", name, value);
}

/** Makes a tensor and lets `write` set its numbers. A failure disposes it. */
function filled(
  op: string,
  shape: readonly number[],
  options: Required<TensorOptions>,
  write: (result: Tensor) => void,
): Tensor {
  const result = allocated(shape, options, op);
  try {
    write(result);
  } catch (error) {
    result.dispose();
    throw typedNativeError(error);
  }
  result.requiresGrad = options.requiresGrad;
  return result;
}

/**
 * A tensor with unset elements. It gets its memory from the first operation that writes to it.
 * @param like dtype and device, for example another tensor; f32 on the default device if omitted
 */
export function empty(
  shape: readonly number[],
  like: { dtype?: DType; device?: Device } = {},
): Tensor {
  if (!Tensor.isTensor(like)) checkOptions("empty", like, ["dtype", "device"]);
  const { dtype = "f32", device = defaultDevice() } = like;
  checkDevice("empty", "device", device);
  return allocated(shape, { dtype, device });
}

/** A tensor filled with one value. Default dtype: f32. */
export function full(shape: readonly number[], value: number, options: TensorOptions = {}): Tensor {
  return constant("full", shape, value, options);
}

/** A tensor of zeros. @param shape lengths of its axes */
export function zeros(shape: readonly number[], options: TensorOptions = {}): Tensor {
  return constant("zeros", shape, 0, options);
}

/** A tensor of ones. @param shape lengths of its axes */
export function ones(shape: readonly number[], options: TensorOptions = {}): Tensor {
  return constant("ones", shape, 1, options);
}

function constant(
  op: string,
  shape: readonly number[],
  value: number,
  options: TensorOptions,
): Tensor {
  if (typeof value !== "number") throw argumentError(op, "a number", "value", value);
  const all = checked(op, options, "f32");
  checkWhole(op, "value", value, all.dtype);
  return filled(op, shape, all, (result) => native.fill(result.native, value));
}

/** 0, 1, 2, ... `count - 1`, or `start + i * step`. Default dtype: i32. */
export function arange(
  count: number,
  options: TensorOptions & { start?: number; step?: number } = {},
): Tensor {
  const all = checked("arange", options, "i32", ["start", "step"]);
  const { start = 0, step = 1 } = options;
  checkNumber("arange", "start", start);
  checkNumber("arange", "step", step);
  checkWhole("arange", "start", start, all.dtype);
  checkWhole("arange", "step", step, all.dtype);
  return filled("arange", [count], all, (result) => native.arange(result.native, start, step));
}

function flatten(data: NestedNumbers, shape: number[], depth: number, out: number[]): void {
  if (typeof data === "number") {
    if (depth !== shape.length)
      throw new ShapeError("[tensor] the nested arrays are not of one depth");
    out.push(data);
    return;
  }
  if (!Array.isArray(data)) {
    throw new ArgumentError(
      `[tensor] expected numbers in nested arrays but received ${describe(data)}`,
    );
  }
  if (depth === shape.length) {
    if (out.length > 0) throw new ShapeError("[tensor] the nested arrays are not of one depth");
    shape.push(data.length);
  } else if (shape[depth] !== data.length) {
    throw new ShapeError(
      `[tensor] axis ${depth} has ${shape[depth]} elements in one place and ${data.length} in another`,
    );
  }
  for (const item of data) flatten(item, shape, depth + 1, out);
}

/** The bits of the nearest bf16 (ties to even). A NaN stays a NaN. */
function bf16Bits(values: Float32Array): Uint16Array {
  const wide = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const bits = hostArray("tensor", Uint16Array, values.length);
  for (let i = 0; i < wide.length; i++) {
    const word = wide[i] as number;
    bits[i] =
      (word & 0x7fffffff) > 0x7f800000
        ? (word >>> 16) | 0x40
        : (word + 0x7fff + ((word >>> 16) & 1)) >>> 16;
  }
  return bits;
}

function toInt32(values: ArrayLike<number>): Int32Array {
  const result = hostArray("tensor", Int32Array, values.length);
  for (let i = 0; i < values.length; i++) {
    const value = values[i] as number;
    if (!Number.isInteger(value) || value < -2147483648 || value > 2147483647) {
      throw new ArgumentError(
        `[tensor] element ${i} is ${value}: i32 takes whole numbers of 32 bits`,
      );
    }
    result[i] = value;
  }
  return result;
}

/**
 * A tensor of the given numbers.
 * @param data nested arrays, or a typed array with `shape` (with dtype bf16, a Uint16Array holds
 *   the bits themselves)
 * @param options default dtype: i32 for an Int32Array, otherwise f32
 */
export function tensor(
  data: TypedArray | NestedNumbers,
  options: TensorOptions & { shape?: readonly number[] } = {},
): Tensor {
  const all = checked("tensor", options, data instanceof Int32Array ? "i32" : "f32", ["shape"]);
  let values: ArrayLike<number>;
  let shape: readonly number[];
  if (ArrayBuffer.isView(data)) {
    values = data as TypedArray;
    shape = options.shape ?? [values.length];
  } else {
    const found: number[] = [];
    const numbers: number[] = [];
    flatten(data as NestedNumbers, found, 0, numbers);
    values = numbers;
    shape = options.shape ?? found;
  }
  return filled("tensor", shape, all, (result) => {
    if (result.size !== values.length) {
      throw new ShapeError(
        `[tensor] shape ${shapeText(shape)} needs ${result.size} numbers, got ${values.length}`,
      );
    }
    result.native.write(elements(data, values, result.dtype));
  });
}

/**
 * Converts numbers to the form that a dtype is written in. An array already in that form is not
 * copied.
 */
function elements(
  data: TypedArray | NestedNumbers,
  values: ArrayLike<number>,
  dtype: DType,
): Float32Array | Int32Array | Uint16Array {
  if (dtype === "i32") return data instanceof Int32Array ? data : toInt32(values);
  if (dtype === "bf16" && data instanceof Uint16Array) return data;
  const floats = data instanceof Float32Array ? data : Float32Array.from(values);
  return dtype === "bf16" ? bf16Bits(floats) : floats;
}
