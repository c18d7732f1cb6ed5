import { createRequire } from "node:module";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import type { Device } from "./device.js";
import {
  ArgumentError,
  CheckpointError,
  DeviceError,
  DisposedError,
  DTypeError,
  LlamaForgeError,
  NativeError,
  NonFiniteError,
  OutOfMemoryError,
  PeerError,
  ResourceError,
  ShapeError,
} from "./errors.js";
import { standardThreads } from "./machine-limits.js";
import { addonFile, explainLoadFailure, thisSystem } from "./native-load.js";
import type { NativeOps } from "./native-ops.js";

/** Number formats of tensors. `bf16` is the upper half of a float32. */
export type DType = "f32" | "bf16" | "i32";

/** A reference to a native tensor. Only lib/core/tensor.ts makes and frees these. */
export interface NativeTensor {
  /** Another reference to the same memory: `shape` starting `offset` elements in. */
  view(offset: number, shape: readonly number[]): NativeTensor;
  /** Tells that no scope will free this tensor: forgotten ones ask for a garbage collection when they grow large. */
  setUnowned(): void;
  dispose(): void;
  /** Copies a typed array of the tensor's dtype (bf16: the bits as Uint16Array). */
  write(data: Float32Array | Int32Array | Uint16Array): void;
  /** The tensor's bytes at this point of the stream. */
  read(): Promise<ArrayBuffer>;
  /** The same into memory that is there already, from a byte of it on. */
  readInto(memory: NativeHostMemory, offset: number): Promise<void>;
}

/** Memory on the host that tensors are read into again and again. */
export interface NativeHostMemory {
  readonly buffer: ArrayBuffer;
}

/** What a device holds; see `memory()`. */
export interface NativeMemory {
  tensors: number;
  bytes: number;
  peakBytes: number;
  cachedBytes: number;
}

export interface BuildInfo {
  version: string;
  compiler: string;
  /** Hash of the version and of the headers that the addon and its plugins share: a plugin must have the same. */
  buildId: string;
  /** The set of CPU kernels chosen for this machine. */
  instructionSet: string;
  threads: number;
}

/** What the CUDA plugin found on this machine. */
export interface CudaInfo {
  /** The file of the plugin. */
  plugin: string;
  /** The CUDA version that the driver supports. */
  driver: string;
  /** Libraries opened at run time, with their places. */
  libraries: string[];
  devices: { name: string; capability: string; memoryBytes: number }[];
}

/** What the addon exports. `io` is typed by lib/checkpoint, `comm` by lib/dist. */
export interface Addon {
  NativeTensor: new (device: number, dtype: DType, shape: readonly number[]) => NativeTensor;
  HostMemory: new (bytes: number) => NativeHostMemory;
  ops: NativeOps;
  io: Record<string, (...args: never[]) => unknown>;
  comm: Record<string, (...args: never[]) => unknown>;
  /** When the device got there: milliseconds of the clock of process.hrtime. */
  synchronize(device: number): Promise<number>;
  /** Like `synchronize`, but leaves a failure to the next wait. Never rejects. */
  passed(device: number): Promise<number>;
  /** Undefined unless too many operations wait for the device; then a promise of when there are few again. */
  ready(device: number): Promise<void> | undefined;
  memory(device: number): NativeMemory;
  resetPeakMemory(device: number): void;
  setMemoryLimit(device: number, bytes: number): void;
  setThreads(threads: number): void;
  buildInfo(): BuildInfo;
  /** Ends the process with this code, without waiting for the reads and writes of other threads as process.exit does. */
  exitNow(code: number): void;
  setPluginFolders(folders: readonly string[]): void;
  cudaInfo(): CudaInfo;
  gpuFreeBytes(index: number): number;
}

const require = createRequire(import.meta.url);

/** The installed packages that carry a CUDA plugin. They are optional: most machines have none or one. */
export function pluginFolders(): string[] {
  return [13].flatMap((major) => {
    try {
      return [dirname(require.resolve(`@llamaforge/linux-x64-cuda${major}/package.json`))];
    } catch {
      return [];
    }
  });
}

/**
 * By default the OpenMP runtime lets waiting threads spin for milliseconds. On a machine that does other work as well the
 * thread they wait for then gets no core: measured 20 ms instead of 0.3 ms for a small operation. Spinning for a few
 * microseconds and sleeping after that costs nothing noticeable when the machine is ours. The runtime reads this once,
 * when the addon brings it in; the user's own setting wins.
 */
function boundSpinning(): void {
  const { env } = process;
  if (env.OMP_WAIT_POLICY === undefined) env.GOMP_SPINCOUNT ??= "2000";
}

function load(): Addon {
  boundSpinning();
  // lib/core/native.ts in the repository, dist/core/native.js in the package: both one level below the root.
  const root = fileURLToPath(new URL("../..", import.meta.url));
  try {
    const loaded = require(addonFile(root)) as Addon;
    loaded.setPluginFolders(pluginFolders());
    if (process.env.LLAMAFORGE_THREADS === undefined) loaded.setThreads(standardThreads());
    return loaded;
  } catch (cause) {
    const { message } = cause as Error;
    throw new DeviceError(explainLoadFailure(root, message, thisSystem()), { cause });
  }
}

export const addon: Addon = load();

type AnyFunction = (...args: unknown[]) => unknown;

/** The class of an error that the addon threw with this `code`. */
export function typedNativeError(error: unknown): unknown {
  if (!(error instanceof Error) || error instanceof LlamaForgeError) return error;
  const { message } = error;
  switch ((error as { code?: unknown }).code) {
    case "ERR_ARGUMENT":
      return new ArgumentError(message, { cause: error });
    case "ERR_SHAPE":
      return new ShapeError(message);
    case "ERR_DTYPE":
      return new DTypeError(message);
    case "ERR_DEVICE":
      return new DeviceError(message, { cause: error });
    case "ERR_DISPOSED":
      return new DisposedError(message);
    case "ERR_RESOURCE":
      return new ResourceError(message, { cause: error });
    case "ERR_OUT_OF_MEMORY":
      return new OutOfMemoryError(message);
    case "ERR_CHECKPOINT":
      return new CheckpointError(message, { cause: error });
    case "ERR_PEER":
      return new PeerError(message, { cause: error });
    case "ERR_NON_FINITE":
      return new NonFiniteError(message, { cause: error });
    case undefined:
      return error;
    default:
      return new NativeError(message, String((error as { code?: unknown }).code));
  }
}

function typedErrors(functions: object): unknown {
  const wrapped: Record<string, AnyFunction> = {};
  for (const [name, native] of Object.entries(functions) as [string, AnyFunction][]) {
    wrapped[name] = (...args) => {
      try {
        return native(...args);
      } catch (error) {
        throw typedNativeError(error);
      }
    };
  }
  return wrapped;
}

/** The native kernels of csrc/ops/ops.def, with typed errors. */
export const native = typedErrors(addon.ops) as NativeOps;

/** The number by which the addon knows a device: 0 is the CPU, 1 + i GPU i. */
export function deviceNumber(device: Device): number {
  return device.type === "cpu" ? 0 : 1 + device.index;
}

/**
 * The CUDA plugin and the GPUs of this machine. Uses none of them: each rank of a run may ask.
 * @throws DeviceError where CUDA cannot be used, with what was tried and what to do
 */
export function cudaInfo(): CudaInfo {
  try {
    return addon.cudaInfo();
  } catch (error) {
    throw typedNativeError(error);
  }
}

/**
 * Free memory of one GPU in bytes. This process becomes a user of that GPU, which takes some hundred MB of it.
 * @throws DeviceError where there is no such GPU or it cannot be used
 */
export function gpuFreeBytes(index: number): number {
  try {
    return addon.gpuFreeBytes(index);
  } catch (error) {
    throw typedNativeError(error);
  }
}

/** Version, compiler and CPU kernels of the loaded addon. */
export function buildInfo(): BuildInfo {
  return addon.buildInfo();
}

/**
 * Sets the number of threads of the CPU device. The default is LLAMAFORGE_THREADS, else OMP_NUM_THREADS, else every core
 * that this process may use: the CPU time that its container is given counts.
 * @throws DeviceError once the CPU device is in use with another number
 */
export function setThreads(threads: number): void {
  try {
    addon.setThreads(threads);
  } catch (error) {
    throw typedNativeError(error);
  }
}
