/** Tensors from numbers: of one value, of a range, of arrays. */
import { type Device, defaultDevice } from "./device.js";
import { ArgumentError, DTypeError, ShapeError } from "./errors.js";
import { type DType, native, typedNativeError } from "./native.js";
import { empty, type Tensor } from "./tensor.js";

/** How a new tensor is made; what is left out is f32, on the default device, without gradient. */
export interface TensorOptions {
  dtype?: DType;
  device?: Device;
  requiresGrad?: boolean;
}

export type TypedArray = Float32Array | Float64Array | Int32Array | Uint16Array | Uint8Array;

/** Numbers in nested arrays, as deep as the tensor has axes. */
export type NestedNumbers = number | readonly NestedNumbers[];

function marked(result: Tensor, options: TensorOptions): Tensor {
  if (options.requiresGrad) {
    if (result.dtype === "i32") {
      throw new DTypeError("[tensor] a tensor of i32 cannot require a gradient");
    }
    result.requiresGrad = true;
  }
  return result;
}

/** A tensor filled with one value. */
export function full(shape: readonly number[], value: number, options: TensorOptions = {}): Tensor {
  if (typeof value !== "number") {
    throw new ArgumentError(`[full] expected a number for value but received ${typeof value}`);
  }
  const result = empty(shape, options, "full");
  native.fill(result.native, value);
  return marked(result, options);
}

export function zeros(shape: readonly number[], options: TensorOptions = {}): Tensor {
  return full(shape, 0, options);
}

export function ones(shape: readonly number[], options: TensorOptions = {}): Tensor {
  return full(shape, 1, options);
}

/** 0, 1, 2, ... `count - 1`, or `start + i * step`; i32 unless stated. */
export function arange(
  count: number,
  options: TensorOptions & { start?: number; step?: number } = {},
): Tensor {
  const { start = 0, step = 1 } = options;
  const result = empty(
    [count],
    { dtype: options.dtype ?? "i32", device: options.device ?? defaultDevice() },
    "arange",
  );
  native.arange(result.native, start, step);
  return marked(result, options);
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
      `[tensor] expected numbers in nested arrays but received ${typeof data}`,
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

/** The bits of the nearest bf16 (ties to even); a NaN stays one. */
function bf16Bits(values: Float32Array): Uint16Array {
  const wide = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const bits = new Uint16Array(values.length);
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
  const result = new Int32Array(values.length);
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
 * @param data nested arrays, or a typed array with `shape` (Uint16Array with dtype bf16: the bits as they are)
 * @param options dtype is i32 for an Int32Array and f32 otherwise, unless stated
 */
export function tensor(
  data: TypedArray | NestedNumbers,
  options: TensorOptions & { shape?: readonly number[] } = {},
): Tensor {
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
  const dtype = options.dtype ?? (data instanceof Int32Array ? "i32" : "f32");
  const result = empty(shape, { dtype, device: options.device ?? defaultDevice() }, "tensor");
  if (result.size !== values.length) {
    throw new ShapeError(
      `[tensor] shape [${shape}] needs ${result.size} numbers, got ${values.length}`,
    );
  }
  try {
    if (dtype === "i32") {
      result.native.write(data instanceof Int32Array ? data : toInt32(values));
    } else if (dtype === "bf16") {
      const bits =
        data instanceof Uint16Array
          ? data
          : bf16Bits(data instanceof Float32Array ? data : Float32Array.from(values));
      result.native.write(bits);
    } else {
      result.native.write(data instanceof Float32Array ? data : Float32Array.from(values));
    }
  } catch (error) {
    throw typedNativeError(error);
  }
  return marked(result, options);
}
