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

/**
 * Number formats of tensors. `bf16` is the upper half of a float32. The formats of 8 bits only occur
 * inside products in fp8.
 */
export type DType = "f32" | "bf16" | "i32" | "f8e4m3" | "f8e5m2";

/** A reference to a native tensor. Only lib/core/tensor.ts creates and frees these. */
export interface NativeTensor {
  /** Another reference to the same memory: `shape`, starting at element `offset`. */
  view(offset: number, shape: readonly number[]): NativeTensor;
  /** Another reference to the same numbers of 4 bytes, read as another dtype. */
  bits(dtype: DType): NativeTensor;
  /**
   * Declares that no scope will free this tensor. Large amounts of forgotten tensors ask for a
   * garbage collection.
   */
  setUnowned(): void;
  dispose(): void;
  /** Copies a typed array of the tensor's dtype (bf16: the bits as Uint16Array). */
  write(data: Float32Array | Int32Array | Uint16Array): void;
  /** Reads the tensor's bytes at this point of the stream. */
  read(): Promise<ArrayBuffer>;
  /**
   * Reads the tensor's bytes at this point of the stream into existing memory, from byte `offset`
   * on.
   */
  readInto(memory: NativeHostMemory, offset: number): Promise<void>;
}

/** Host memory that tensors are read into repeatedly. */
export interface NativeHostMemory {
  readonly buffer: ArrayBuffer;
}

/** Operations that a device repeats as one. Only lib/core/recording.ts creates and frees these. */
export interface NativeRecording {
  readonly length: number;
  replay(): void;
  dispose(): void;
}

/** Memory use of a device; see `memory()`. */
export interface NativeMemory {
  tensors: number;
  bytes: number;
  peakBytes: number;
  cachedBytes: number;
}

/** The addon: its version and compiler, and the kernels chosen for this machine. */
export interface BuildInfo {
  version: string;
  compiler: string;
  /**
   * Hash of the version and of the headers shared by the addon and its plugins. A plugin must have
   * the same hash.
   */
  buildId: string;
  /** Name of the CPU kernels chosen for this machine. */
  instructionSet: string;
  threads: number;
  /** CUDA majors that have a plugin, newest first. */
  cudaMajors: number[];
}

/** The CUDA plugin and its environment on this machine. */
export interface CudaInfo {
  /** Path of the plugin's file. */
  plugin: string;
  /** Plugins that were preferred to this one and not taken, each with the reason. */
  passedOver: string[];
  /** The CUDA version that the driver supports. */
  driver: string;
  /** Libraries opened at run time, with their paths. */
  libraries: string[];
  devices: { name: string; capability: string; memoryBytes: number }[];
}

/** Exports of the addon. `io` is typed by lib/checkpoint, `comm` by lib/dist. */
export interface Addon {
  NativeTensor: new (device: number, dtype: DType, shape: readonly number[]) => NativeTensor;
  HostMemory: new (bytes: number) => NativeHostMemory;
  ops: NativeOps;
  /** Ends the recording of this thread and takes its operations. */
  NativeRecording: new () => NativeRecording;
  /** From now on, operations on the device are recorded instead of enqueued. */
  beginRecording(device: number): void;
  /** Ends the recording and forgets its operations. */
  dropRecording(): void;
  io: Record<string, (...args: never[]) => unknown>;
  comm: Record<string, (...args: never[]) => unknown>;
  /**
   * Waits for the device. Resolves to the time at which it got there, in milliseconds of `clock`.
   */
  synchronize(device: number): Promise<number>;
  /**
   * The time now, in milliseconds of the system's monotonic clock. process.hrtime reads this clock
   * in Node alone: in Bun and Deno it starts with the process.
   */
  clock(): number;
  /** Like `synchronize`, but leaves a failure to the next wait. Never rejects. */
  passed(device: number): Promise<number>;
  /**
   * Undefined unless too many operations wait for the device; then a promise that resolves when few
   * are left.
   */
  ready(device: number): Promise<void> | undefined;
  memory(device: number): NativeMemory;
  resetPeakMemory(device: number): void;
  setMemoryLimit(device: number, bytes: number): void;
  setThreads(threads: number): void;
  buildInfo(): BuildInfo;
  /**
   * Ends the process with this code, without waiting for reads and writes of other threads as
   * process.exit does.
   */
  exitNow(code: number): void;
  setPluginFolders(folders: readonly string[]): void;
  cudaInfo(): CudaInfo;
  gpuFreeBytes(index: number): number;
}

const require = createRequire(import.meta.url);

/**
 * Folders of the installed packages that carry a CUDA plugin. The packages are optional: npm may
 * have installed none of them.
 */
export function pluginFolders({ cudaMajors }: Pick<BuildInfo, "cudaMajors">): string[] {
  return cudaMajors.flatMap((major) => {
    const name = `@llamaforge/${process.platform}-${process.arch}-cuda${major}`;
    try {
      return [dirname(require.resolve(`${name}/package.json`))];
    } catch {
      return [];
    }
  });
}

/**
 * Bounds the time that waiting OpenMP threads spin. By default they spin for milliseconds. On a
 * machine that does other work as well, the thread they wait for then gets no core: measured 20 ms
 * instead of 0.3 ms for a small operation. Spinning for a few microseconds before sleeping costs
 * nothing noticeable on an idle machine. The runtime reads this setting once, when the addon loads
 * it. The user's own setting takes precedence.
 */
function boundSpinning(): void {
  const { env } = process;
  if (env.OMP_WAIT_POLICY !== undefined || env.GOMP_SPINCOUNT !== undefined) return;
  env.GOMP_SPINCOUNT = "2000";
  if (process.versions.bun !== undefined) setNative("GOMP_SPINCOUNT", "2000");
}

/**
 * Sets a variable where native libraries read it. In Bun, process.env is an object of JavaScript
 * alone. Without this a step of the quickstart took 30 times as long there.
 */
function setNative(name: string, value: string): void {
  const ffi = require("bun:ffi") as {
    dlopen(file: string, symbols: object): { symbols: { setenv: (...args: unknown[]) => number } };
  };
  const { symbols } = ffi.dlopen("libc.so.6", {
    setenv: { args: ["ptr", "ptr", "i32"], returns: "i32" },
  });
  symbols.setenv(Buffer.from(`${name}\0`), Buffer.from(`${value}\0`), 1);
}

function load(): Addon {
  boundSpinning();
  // lib/core/native.ts in the repository, dist/core/native.js in the package: both two levels below
  // the root.
  const root = fileURLToPath(new URL("../..", import.meta.url));
  try {
    const loaded = require(addonFile(root)) as Addon;
    loaded.setPluginFolders(pluginFolders(loaded.buildInfo()));
    if (process.env.LLAMAFORGE_THREADS === undefined) loaded.setThreads(standardThreads());
    return loaded;
  } catch (cause) {
    const { message } = cause as Error;
    throw new DeviceError(explainLoadFailure(root, message, thisSystem()), { cause });
  }
}

export const addon: Addon = load();

type AnyFunction = (...args: unknown[]) => unknown;

/** Gives an error that the addon threw the class that belongs to its `code`. */
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

/** The addon's number for a device: 0 is the CPU, 1 + i is GPU i. */
export function deviceNumber(device: Device): number {
  return device.type === "cpu" ? 0 : 1 + device.index;
}

/**
 * Describes the CUDA plugin and the GPUs of this machine. It uses none of the GPUs, so every rank
 * of a run may call it.
 * @throws DeviceError if CUDA cannot be used, with the attempts made and the remedy
 */
export function cudaInfo(): CudaInfo {
  try {
    return addon.cudaInfo();
  } catch (error) {
    throw typedNativeError(error);
  }
}

/**
 * Free memory of one GPU in bytes. This process becomes a user of that GPU, which takes some
 * hundred MB of its memory.
 * @throws DeviceError if the GPU does not exist or cannot be used
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
 * Sets the number of threads of the CPU device. The default is LLAMAFORGE_THREADS, else
 * OMP_NUM_THREADS, else every core that this process may use, limited by the CPU time of its
 * container.
 * @throws DeviceError if the CPU device is already in use with another number
 */
export function setThreads(threads: number): void {
  try {
    addon.setThreads(threads);
  } catch (error) {
    throw typedNativeError(error);
  }
}
