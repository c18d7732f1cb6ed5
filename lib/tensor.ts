import { type GraphNode, runBackward } from "./autograd.js";
import { type Device, defaultDevice, deviceName } from "./device.js";
import { ArgumentError, AutogradError, DisposedError, DTypeError, ShapeError } from "./errors.js";
import {
  addon,
  type DType,
  deviceNumber,
  type NativeMemory,
  type NativeTensor,
  native,
  typedNativeError,
} from "./native.js";
import { currentScope, type Scope } from "./scope.js";

export type { DType } from "./native.js";

/** How a new tensor is made; what is left out is f32, on the default device, without gradient. */
export interface TensorOptions {
  dtype?: DType;
  device?: Device;
  requiresGrad?: boolean;
}

export type TypedArray = Float32Array | Float64Array | Int32Array | Uint16Array | Uint8Array;

/** Numbers in nested arrays, as deep as the tensor has axes. */
export type NestedNumbers = number | readonly NestedNumbers[];

/**
 * Told what happens to a leaf on the tape: whoever moves parameters and gradients between processes goes by it.
 * @internal
 */
export interface LeafHooks {
  /** An operation of the backward pass that reads the leaf is about to be enqueued. */
  neededInBackward(): void;
  /** An operation on the tape is going to write the leaf's gradient. */
  recorded(): void;
  /** It has; or it let go without, when its scope ended. */
  gradientWritten(): void;
  dropped(): void;
  /** The gradient's buffer is about to be written. */
  gradientNeeded(): void;
}

/** A native reference that several Tensor objects share: handles of the user and references held by the tape. */
interface Handle {
  readonly native: NativeTensor;
  references: number;
}

/**
 * A dense array of numbers on a device. Operations on it are enqueued and return at once; only `item()`, `toArray()` and
 * `synchronize()` wait. Its memory is freed at the end of the scope it was made in, or by `dispose()`.
 */
export class Tensor {
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly device: Device;
  /** Number of elements. */
  readonly size: number;
  /** Whether `backward()` computes a gradient for this tensor. */
  requiresGrad = false;
  /** The operation that made it, for messages. */
  op: string;

  /** Where this tensor stands in the graph; null for leaves. @internal */
  node: GraphNode | null = null;

  /** @internal */
  hooks: LeafHooks | null = null;

  #handle: Handle | null;
  #scope: Scope | undefined;
  #gradient: Tensor | null = null;
  #gradientFilled = false;

  /** @internal Use `tensor()`, `zeros()`, ... */
  constructor(
    handle: Handle,
    shape: readonly number[],
    dtype: DType,
    device: Device,
    op: string,
    scope: Scope | undefined,
  ) {
    this.#handle = handle;
    this.shape = shape;
    this.dtype = dtype;
    this.device = device;
    this.op = op;
    let size = 1;
    for (const extent of shape) size *= extent;
    this.size = size;
    this.#scope = scope;
    scope?.addTensor(this);
  }

  /** Whether a value is a tensor of this copy of the library (a look-alike or a Proxy is not). */
  static isTensor(value: unknown): value is Tensor {
    return typeof value === "object" && value !== null && #handle in value;
  }

  get rank(): number {
    return this.shape.length;
  }

  /** The native reference, for native calls. @throws DisposedError */
  get native(): NativeTensor {
    if (!this.#handle) this.checkAlive(this.op);
    return (this.#handle as Handle).native;
  }

  get disposed(): boolean {
    return this.#handle === null;
  }

  /** @throws DisposedError if the tensor's memory is gone */
  checkAlive(op: string): void {
    if (this.#handle) return;
    throw new DisposedError(
      `[${op}] a tensor of shape [${this.shape}] made by ${this.op} has been disposed: its scope ended or dispose() ` +
        "was called; keep(tensor) moves a tensor out of its scope",
    );
  }

  // ---- reading

  /** The value of a tensor with one element. Waits for the device. */
  async item(): Promise<number> {
    this.checkAlive("item");
    if (this.size !== 1) {
      throw new ShapeError(`[item] expected one element, got shape [${this.shape}]`);
    }
    const values = await this.toArray();
    return values[0] as number;
  }

  /** The elements in row-major order, bf16 as float32. Waits for the device without blocking the event loop. */
  async toArray(): Promise<Float32Array | Int32Array> {
    this.checkAlive("toArray");
    if (this.dtype === "bf16") {
      const wide = untracked(this.shape, "f32", this.device, "toArray");
      native.cast(this.native, wide.native);
      const result = wide.toArray();
      wide.dispose();
      return result;
    }
    const bytes = await this.toBytes();
    return this.dtype === "i32" ? new Int32Array(bytes) : new Float32Array(bytes);
  }

  /** The elements' bytes (little-endian, row-major) as they are at this point of the stream. */
  async toBytes(): Promise<ArrayBuffer> {
    this.checkAlive("toBytes");
    try {
      return await this.native.read();
    } catch (error) {
      throw typedNativeError(error);
    }
  }

  // ---- memory

  /**
   * A tensor of `shape` over this one's memory, from `offset` elements on. Not differentiable by itself: use `reshape`.
   * @throws ShapeError if it does not fit
   */
  view(shape: readonly number[], offset = 0): Tensor {
    this.checkAlive("view");
    try {
      const handle = { native: this.native.view(offset, shape), references: 1 };
      return new Tensor(handle, [...shape], this.dtype, this.device, this.op, currentScope());
    } catch (error) {
      throw typedNativeError(error);
    }
  }

  /** Frees this handle. A second call does nothing; memory that a pending operation or the tape needs stays until then. */
  dispose(): void {
    if (!this.#handle) return;
    this.#scope?.removeTensor(this);
    this.disposeInScope();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** @internal */
  disposeInScope(): void {
    if (!this.#handle) return;
    if (--this.#handle.references === 0) this.#handle.native.dispose();
    this.#handle = null;
    this.#scope = undefined;
    this.node = null;
    this.#gradient?.dispose();
    this.#gradient = null;
  }

  /** Another handle to the same memory that belongs to no scope. @internal */
  retain(): Tensor {
    const other = this.#share(undefined);
    other.hooks = this.hooks;
    return other;
  }

  /** Another handle to the same memory in the current scope: what an operation in place returns. @internal */
  alias(): Tensor {
    return this.#share(currentScope());
  }

  #share(scope: Scope | undefined): Tensor {
    this.checkAlive(this.op);
    const handle = this.#handle as Handle;
    handle.references++;
    return new Tensor(handle, this.shape, this.dtype, this.device, this.op, scope);
  }

  /** @internal */
  get scope(): Scope | undefined {
    return this.#scope;
  }

  /** @internal */
  setScope(scope: Scope | undefined): void {
    this.#scope = scope;
    scope?.addTensor(this);
  }

  // ---- gradients

  /**
   * The accumulated gradient of a leaf (f32, same shape), or null before the first `backward()`. It belongs to this
   * tensor and changes with the next `backward()`.
   */
  get grad(): Tensor | null {
    return this.#gradientFilled ? this.#gradient : null;
  }

  /** Forgets the gradient; the next `backward()` overwrites it. */
  zeroGrad(): void {
    this.#gradientFilled = false;
  }

  /** Gives the gradient a place of its own, e.g. in a flat buffer. @internal */
  bindGradient(buffer: Tensor): void {
    this.#gradient = buffer;
    this.#gradientFilled = false;
  }

  /** Where the next gradient goes, and whether it is added there. Marks the gradient as present. @internal */
  gradientTarget(): { tensor: Tensor; accumulate: boolean } {
    this.hooks?.gradientNeeded();
    this.#gradient ??= untracked(this.shape, "f32", this.device, "backward");
    const accumulate = this.#gradientFilled;
    this.#gradientFilled = true;
    return { tensor: this.#gradient, accumulate };
  }

  /** The buffer behind `grad`, filled or not. @internal */
  get gradientBuffer(): Tensor | null {
    return this.#gradient;
  }

  /**
   * Computes the gradients of all leaves that led to this tensor and adds them to their `grad`.
   * @param options.gradient gradient of this tensor; may be left out for one element, then it is `scale`
   * @param options.scale factor, e.g. 1/N for N accumulated micro-batches (1)
   * @throws AutogradError if nothing needs a gradient or the graph has been used up
   */
  backward(options: { gradient?: Tensor; scale?: number } = {}): void {
    this.checkAlive("backward");
    const { gradient, scale = 1 } = options;
    if (!Number.isFinite(scale)) {
      throw new ArgumentError(`[backward] expected a finite scale, got ${scale}`);
    }
    if (!this.requiresGrad) {
      throw new AutogradError(
        "[backward] nothing here needs a gradient: no input has requiresGrad, or it was made inside noGrad()",
      );
    }
    if (gradient) {
      if (scale !== 1) throw new ArgumentError("[backward] give either a gradient or a scale");
      if (gradient.shape.join() !== this.shape.join() || gradient.dtype !== this.dtype) {
        throw new ShapeError(
          `[backward] expected a gradient of ${this.dtype} [${this.shape}], got ${gradient.dtype} [${gradient.shape}]`,
        );
      }
      runBackward([this], [gradient]);
      return;
    }
    if (this.size !== 1) {
      throw new ShapeError(
        `[backward] expected one element (a loss), got shape [${this.shape}]: sum it, or give its gradient`,
      );
    }
    const seed = untracked(this.shape, this.dtype, this.device, "backward");
    native.fill(seed.native, scale);
    try {
      runBackward([this], [seed]);
    } finally {
      seed.dispose();
    }
  }

  /** A leaf over the same memory, cut off from the graph. */
  detach(): Tensor {
    return this.view(this.shape);
  }

  toString(): string {
    const state = this.disposed ? ", disposed" : "";
    return `Tensor(${this.dtype} [${this.shape}] on ${deviceName(this.device)}, by ${this.op}${state})`;
  }
}

function newHandle(shape: readonly number[], dtype: DType, device: Device): Handle {
  const number = deviceNumber(device);
  try {
    return { native: new addon.NativeTensor(number, dtype, shape), references: 1 };
  } catch (error) {
    throw typedNativeError(error);
  }
}

/** A tensor that belongs to no scope; whoever makes it disposes it. @internal */
export function untracked(
  shape: readonly number[],
  dtype: DType,
  device: Device,
  op: string,
): Tensor {
  return new Tensor(newHandle(shape, dtype, device), [...shape], dtype, device, op, undefined);
}

/**
 * A tensor whose elements are not set yet: the first operation that writes it gives it memory.
 * @param like dtype and device, e.g. of another tensor; f32 on the default device if left out
 */
export function empty(
  shape: readonly number[],
  like: { dtype?: DType; device?: Device } = {},
  op = "empty",
): Tensor {
  const { dtype = "f32", device = defaultDevice() } = like;
  return new Tensor(newHandle(shape, dtype, device), [...shape], dtype, device, op, currentScope());
}

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

/** Waits until the device has run everything enqueued so far. @throws the first failure since the last wait */
export async function synchronize(device: Device = defaultDevice()): Promise<void> {
  try {
    await addon.synchronize(deviceNumber(device));
  } catch (error) {
    throw typedNativeError(error);
  }
}

/** Live tensors and bytes of a device: in use now, highest so far, and kept for reuse. */
export function memory(device: Device = defaultDevice()): NativeMemory {
  return addon.memory(deviceNumber(device));
}

/** Starts the count of `memory().peakBytes` anew. */
export function resetPeakMemory(device: Device = defaultDevice()): void {
  addon.resetPeakMemory(deviceNumber(device));
}

/** Highest number of bytes that tensors of a device may take; 0: what the machine has. */
export function setMemoryLimit(bytes: number, device: Device = defaultDevice()): void {
  try {
    addon.setMemoryLimit(deviceNumber(device), bytes);
  } catch (error) {
    throw typedNativeError(error);
  }
}
