import { checkBoolean, checkMade } from "./check-values.js";
import { currentScope, type Scope } from "./current-scope.js";
import { checkDevice, type Device, defaultDevice, deviceName } from "./device.js";
import { AutogradError, DisposedError, DTypeError, ShapeError } from "./errors.js";
import { isFp8, widenFp8 } from "./fp8.js";
import { hostArray } from "./host-array.js";
import {
  addon,
  type DType,
  deviceNumber,
  type NativeTensor,
  native,
  typedNativeError,
} from "./native.js";
import type { GraphNode } from "./tape.js";

export type { DType } from "./native.js";

/**
 * Notifications about a leaf on the tape, for strategies that move parameters and gradients between
 * processes.
 * @internal
 */
export interface LeafHooks {
  /** Called before an operation of the backward pass that reads the leaf is enqueued. */
  neededInBackward(): void;
  /** Called when an operation that will write the leaf's gradient is recorded. */
  recorded(): void;
  /** Called when that operation has written the gradient. */
  gradientWritten(): void;
  dropped(): void;
  /** Called before the gradient's buffer is written. */
  gradientNeeded(): void;
}

/** State shared by all tensors over the same memory, views included. @internal */
export interface Memory {
  /**
   * Number of writes in place. Tensors that the tape has saved must not change before their
   * backward step.
   */
  version: number;
  /** Name of the latest writer, for messages. */
  writer: string;
  /** Number of leaves over the memory that require a gradient. */
  leaves: number;
}

/**
 * A native reference shared by several Tensor objects: the user's handles, and references held by
 * the tape.
 */
interface Handle {
  readonly native: NativeTensor;
  readonly memory: Memory;
  references: number;
}

/** Options of `backward()`. */
export interface BackwardOptions {
  /**
   * Gradient of the tensor, with its shape, dtype and device. Optional for one element, whose
   * default is `scale`.
   */
  gradient?: Tensor;
  /** Factor of the gradient, such as 1/N for N accumulated micro-batches. Default: 1. */
  scale?: number;
}

let runBackward = (_output: Tensor, _options: BackwardOptions): void => {
  throw new AutogradError("[backward] lib/core/backward.ts has not been loaded");
};

/**
 * backward.ts says how gradients are computed when it is loaded; it needs tensors, so they cannot
 * import it. Whatever makes tensors or records operations (create.ts, autograd.ts) loads it.
 * @internal
 */
export function setBackward(run: typeof runBackward): void {
  runBackward = run;
}

/**
 * A dense array of numbers on a device. Operations on it are enqueued and return at once; only
 * `item()`, `toArray()` and `synchronize()` wait. Its memory is freed at the end of the scope in
 * which it was made, or by `dispose()`.
 */
export class Tensor {
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly device: Device;
  /** Number of elements. */
  readonly size: number;
  /** Name of the operation that made it, for messages. */
  op: string;

  /** Place of this tensor in the graph; null for leaves. @internal */
  node: GraphNode | null = null;

  /** @internal */
  hooks: LeafHooks | null = null;

  #handle: Handle | null;
  #scope: Scope | undefined;
  #gradient: Tensor | null = null;
  /**
   * Place assigned to the gradient, if there is one: a separate handle that no user can dispose.
   */
  #gradientPlace: Tensor | null = null;
  #gradientFilled = false;
  #requiresGrad = false;
  /** Version of the memory that this tensor's place in the graph stands for. */
  #version: number;

  /** @internal Use `tensor()`, `zeros()`, ... */
  constructor(
    handle: Handle,
    shape: readonly number[],
    dtype: DType,
    device: Device,
    op: string,
    scope: Scope | undefined,
  ) {
    checkMade("Tensor", "tensor(), zeros(), ...", typeof handle?.references === "number");
    this.#handle = handle;
    this.shape = shape;
    this.dtype = dtype;
    this.device = device;
    this.op = op;
    let size = 1;
    for (const extent of shape) size *= extent;
    this.size = size;
    this.#version = handle.memory.version;
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
    return this.#alive().native;
  }

  #alive(): Handle {
    if (!this.#handle) this.checkAlive(this.op);
    return this.#handle as Handle;
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

  /** The elements in row-major order, bf16 and fp8 as float32. Waits for the device without blocking the event loop. */
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
    if (isFp8(this.dtype)) return widenFp8(bytes, this.dtype);
    return this.dtype === "i32"
      ? hostArray("toArray", Int32Array, bytes)
      : hostArray("toArray", Float32Array, bytes);
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
   * A tensor of `shape` over this tensor's memory, starting at element `offset`. It is not
   * differentiable; `reshape` is.
   * @throws ShapeError if it does not fit
   */
  view(shape: readonly number[], offset = 0): Tensor {
    this.checkAlive("view");
    try {
      const { memory } = this.#handle as Handle;
      const handle = { native: this.native.view(offset, shape), memory, references: 1 };
      return new Tensor(handle, [...shape], this.dtype, this.device, this.op, currentScope());
    } catch (error) {
      throw typedNativeError(error);
    }
  }

  /** A view of this memory as another dtype of 4 bytes, without a conversion. @internal */
  bits(dtype: DType): Tensor {
    this.checkAlive("bits");
    try {
      const { memory } = this.#handle as Handle;
      const handle = { native: this.native.bits(dtype), memory, references: 1 };
      return new Tensor(handle, this.shape, dtype, this.device, this.op, currentScope());
    } catch (error) {
      throw typedNativeError(error);
    }
  }

  /**
   * Frees this handle. A second call does nothing. Memory needed by a pending operation or the tape
   * stays until then.
   */
  dispose(): void {
    if (!this.#handle) return;
    this.#scope?.removeTensor(this);
    this.disposeInScope();
  }

  /** Frees the tensor at the end of a block: `using x = ...`. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  /** @internal */
  disposeInScope(): void {
    if (!this.#handle) return;
    if (this.#requiresGrad && !this.node) this.#handle.memory.leaves--;
    if (--this.#handle.references === 0) this.#handle.native.dispose();
    this.#handle = null;
    this.#scope = undefined;
    this.node = null;
    this.#gradient?.dispose();
    this.#gradient = null;
    this.#gradientPlace?.dispose();
    this.#gradientPlace = null;
    this.#gradientFilled = false;
  }

  /** Another handle to the same memory, in no scope. @internal */
  retain(): Tensor {
    const other = this.#share(undefined);
    other.hooks = this.hooks;
    return other;
  }

  /**
   * Another handle to the same memory, in the current scope. Operations in place return it.
   * @internal
   */
  alias(): Tensor {
    return this.#share(currentScope());
  }

  #share(scope: Scope | undefined): Tensor {
    const handle = this.#alive();
    handle.references++;
    return new Tensor(handle, this.shape, this.dtype, this.device, this.op, scope);
  }

  /** @internal */
  get memory(): Readonly<Memory> {
    return this.#alive().memory;
  }

  /**
   * Reports that `writer` has written the memory in place. From then on, backward refuses to use
   * saved tensors over this memory, and other tensors over it with a place in the graph are
   * outdated.
   * @internal
   */
  changed(writer: string): void {
    const { memory } = this.#alive();
    this.#version = ++memory.version;
    memory.writer = writer;
  }

  /** Whether the memory has changed since this tensor got its place in the graph. @internal */
  get outdated(): boolean {
    return this.#version !== this.#alive().memory.version;
  }

  /** @internal */
  get scope(): Scope | undefined {
    return this.#scope;
  }

  /** @internal */
  setScope(scope: Scope | undefined): void {
    this.#scope = scope;
    if (scope) scope.addTensor(this);
    else this.#handle?.native.setUnowned();
  }

  // ---- gradients

  /** Whether `backward()` computes a gradient for this tensor. @throws DTypeError when set on i32, which has none */
  get requiresGrad(): boolean {
    return this.#requiresGrad;
  }

  set requiresGrad(value: boolean) {
    checkBoolean("requiresGrad", "requiresGrad", value);
    if (value === this.#requiresGrad) return;
    this.checkAlive("requiresGrad");
    if (value && this.dtype === "i32") {
      throw new DTypeError("[requiresGrad] a tensor of i32 cannot require a gradient");
    }
    this.#requiresGrad = value;
    if (!this.node) (this.#handle as Handle).memory.leaves += value ? 1 : -1;
  }

  /** Makes this tensor an output of a recorded operation. @internal */
  setNode(node: GraphNode): void {
    this.node = node;
    this.#requiresGrad = true;
  }

  /**
   * The accumulated gradient of a leaf (f32, same shape), or null before the first `backward()`. It
   * belongs to this tensor and changes with the next `backward()`. If it is disposed, the next
   * `backward()` makes a new one.
   */
  get grad(): Tensor | null {
    const buffer = this.gradientBuffer;
    return this.#gradientFilled ? buffer : null;
  }

  /** Discards the gradient. The next `backward()` overwrites it. */
  zeroGrad(): void {
    this.#gradientFilled = false;
  }

  /**
   * Assigns the gradient a place, for example in a flat buffer. An existing gradient moves there.
   * @internal
   */
  bindGradient(buffer: Tensor): void {
    const earlier = this.gradientBuffer;
    this.#gradient = buffer;
    this.#gradientPlace?.dispose();
    this.#gradientPlace = buffer.retain();
    if (!earlier) return;
    if (this.#gradientFilled) native.cast(earlier.native, buffer.native);
    earlier.dispose();
  }

  /**
   * Buffer of the next gradient, and whether to add to it. Marks the gradient as present. @internal
   */
  gradientTarget(): { tensor: Tensor; accumulate: boolean } {
    this.hooks?.gradientNeeded();
    const buffer = this.gradientBuffer ?? untracked(this.shape, "f32", this.device, "backward");
    this.#gradient = buffer;
    const accumulate = this.#gradientFilled;
    this.#gradientFilled = true;
    buffer.changed("backward");
    return { tensor: buffer, accumulate };
  }

  /**
   * The buffer behind `grad`, filled or not. An assigned place is taken up again if its gradient
   * was disposed. @internal
   */
  get gradientBuffer(): Tensor | null {
    if (this.#gradient?.disposed) {
      this.#gradient = this.#gradientPlace?.retain() ?? null;
      this.#gradientFilled = false;
    }
    return this.#gradient;
  }

  /**
   * Computes the gradients of all leaves that led to this tensor and adds them to their `grad`.
   * @param options.gradient gradient of this tensor; optional for one element, whose default is
   *   `scale`
   * @param options.scale factor, such as 1/N for N accumulated micro-batches. Default: 1
   * @throws AutogradError if nothing needs a gradient, the graph has already run, or a tensor that
   *   it needs was written in place meanwhile (an optimizer's step, `rope` in place)
   * @throws ArgumentError, ShapeError, DTypeError, DeviceError, DisposedError for options that do
   *   not fit
   */
  backward(options: BackwardOptions = {}): void {
    runBackward(this, options);
  }

  /** A leaf over the same memory, disconnected from the graph. */
  detach(): Tensor {
    return this.view(this.shape);
  }

  /** Shape, dtype and device, without the values. */
  toString(): string {
    const state = this.disposed ? ", disposed" : "";
    return `Tensor(${this.dtype} [${this.shape}] on ${deviceName(this.device)}, by ${this.op}${state})`;
  }
}

function newHandle(shape: readonly number[], dtype: DType, device: Device, op: string): Handle {
  const number = device ? deviceNumber(device) : Number.NaN;
  if (!(number >= 0)) checkDevice(op, "device", device);
  try {
    const memory = { version: 0, writer: "", leaves: 0 };
    return { native: new addon.NativeTensor(number, dtype, shape), memory, references: 1 };
  } catch (error) {
    throw typedNativeError(error);
  }
}

/** A tensor that belongs to no scope. Its maker has to dispose it. @internal */
export function untracked(
  shape: readonly number[],
  dtype: DType,
  device: Device,
  op: string,
): Tensor {
  return new Tensor(newHandle(shape, dtype, device, op), [...shape], dtype, device, op, undefined);
}

/**
 * Does the work of `empty` in create.ts without checking the arguments. Operations make their
 * results with it.
 * @internal
 */
export function empty(
  shape: readonly number[],
  like: { dtype?: DType; device?: Device } = {},
  op = "empty",
): Tensor {
  const { dtype = "f32", device = defaultDevice() } = like;
  const scope = currentScope();
  const handle = newHandle(shape, dtype, device, op);
  if (!scope) handle.native.setUnowned();
  return new Tensor(handle, [...shape], dtype, device, op, scope);
}
