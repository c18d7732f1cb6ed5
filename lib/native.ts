import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Device, deviceName } from "./device.js";
import {
  ArgumentError,
  CheckpointError,
  DeviceError,
  DisposedError,
  DTypeError,
  LlamaForgeError,
  NativeError,
  OutOfMemoryError,
  ShapeError,
} from "./errors.js";
import type { NativeOps } from "./native-ops.js";

/** Number formats of tensors. `bf16` is the upper half of a float32. */
export type DType = "f32" | "bf16" | "i32";

/** A reference to a native tensor. Only lib/tensor.ts makes and frees these. */
export interface NativeTensor {
  /** Another reference to the same memory: `shape` starting `offset` elements in. */
  view(offset: number, shape: readonly number[]): NativeTensor;
  dispose(): void;
  /** Copies a typed array of the tensor's dtype (bf16: the bits as Uint16Array). */
  write(data: Float32Array | Int32Array | Uint16Array): void;
  /** The tensor's bytes at this point of the stream. */
  read(): Promise<ArrayBuffer>;
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
  /** The set of CPU kernels chosen for this machine. */
  instructionSet: string;
  threads: number;
}

/** What the addon exports. `io` is typed by lib/checkpoint. */
export interface Addon {
  NativeTensor: new (device: number, dtype: DType, shape: readonly number[]) => NativeTensor;
  ops: NativeOps;
  io: Record<string, (...args: never[]) => unknown>;
  synchronize(device: number): Promise<void>;
  memory(device: number): NativeMemory;
  resetPeakMemory(device: number): void;
  setMemoryLimit(device: number, bytes: number): void;
  setThreads(threads: number): void;
  buildInfo(): BuildInfo;
}

const require = createRequire(import.meta.url);

function packageRoot(): string {
  // lib/native.ts in the repository, dist/native.js in the package: both one level below the root.
  return join(dirname(fileURLToPath(import.meta.url)), "..");
}

function load(): Addon {
  const root = packageRoot();
  const find = require("node-gyp-build") as (root: string) => Addon;
  try {
    return find(root);
  } catch (cause) {
    throw new DeviceError(
      `[native] the native addon could not be loaded from ${root}: ${(cause as Error).message}\n` +
        "In a clone of the repository build it with: npm run setup",
      { cause },
    );
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
    case "ERR_OUT_OF_MEMORY":
      return new OutOfMemoryError(message);
    case "ERR_CHECKPOINT":
      return new CheckpointError(message, { cause: error });
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

/** The number by which the addon knows a device. */
export function deviceNumber(device: Device): number {
  if (device.type === "cpu" && device.index === 0) return 0;
  throw new DeviceError(
    `[device] ${deviceName(device)} cannot be used: this version of LlamaForge has no CUDA plugin; use the CPU`,
  );
}

/** Version, compiler and CPU kernels of the loaded addon. */
export function buildInfo(): BuildInfo {
  return addon.buildInfo();
}

/**
 * Sets the number of threads of the CPU device; the default is every core, or LLAMAFORGE_THREADS.
 * @throws DeviceError once the CPU device is in use with another number
 */
export function setThreads(threads: number): void {
  try {
    addon.setThreads(threads);
  } catch (error) {
    throw typedNativeError(error);
  }
}
