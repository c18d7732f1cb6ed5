import { type GraphNode, runBackward } from "./autograd.js";
import { type Device, defaultDevice, deviceName } from "./device.js";
import { ArgumentError, AutogradError, DisposedError, ShapeError } from "./errors.js";
import {
  addon,
  type DType,
  deviceNumber,
  type NativeTensor,
  native,
  typedNativeError,
} from "./native.js";
import { currentScope, type Scope } from "./scope.js";

export type { DType } from "./native.js";

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
