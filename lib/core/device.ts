import { argumentError, describe } from "./check-values.js";
import { ArgumentError, DeviceError } from "./errors.js";

/**
 * A device on which tensors live and operations run: the CPU, or one GPU. Compare devices with
 * `sameDevice`.
 */
export interface Device {
  readonly type: "cpu" | "cuda";
  /** Index among the devices of its type; 0 for the CPU. */
  readonly index: number;
}

/** The CPU: operations run on a native thread of their own with an OpenMP team. */
export const cpu: Device = Object.freeze({ type: "cpu", index: 0 });

/**
 * A GPU. Its plugin is loaded with the first tensor on it. If that fails, making the tensor throws
 * an error that says what to install: work never moves to the CPU silently.
 * @param index index among the GPUs that this process sees. Default: 0
 */
export function cuda(index = 0): Device {
  if (!Number.isInteger(index) || index < 0 || index > 999) {
    throw new ArgumentError(`[cuda] expected a GPU index from 0 on, got ${describe(index)}`);
  }
  return Object.freeze({ type: "cuda", index });
}

let current: Device = cpu;

/** Device of new tensors that name none: the CPU, unless `setDefaultDevice` changed it. */
export function defaultDevice(): Device {
  return current;
}

/**
 * Sets the device of all new tensors that name none, in this thread.
 * @throws ArgumentError for anything but a device. `parseDevice` converts the name of one
 */
export function setDefaultDevice(device: Device): void {
  if (!isDevice(device)) {
    throw new ArgumentError(
      '[setDefaultDevice] expected a device: cpu, cuda(0) or parseDevice("cuda:0")',
    );
  }
  current = device;
}

/** Whether a value is a device. @internal */
export function isDevice(value: unknown): value is Device {
  if (typeof value !== "object" || value === null) return false;
  const { type, index } = value as Partial<Device>;
  return (type === "cpu" && index === 0) || (type === "cuda" && Number.isInteger(index));
}

/** Checks for a device from `cpu`, `cuda()` or `parseDevice()`. A device's name is not a device. */
export function checkDevice(op: string, name: string, value: unknown): asserts value is Device {
  if (isDevice(value)) return;
  throw argumentError(op, 'a device (cpu, cuda(0), parseDevice("cuda:0"))', name, value);
}

export function sameDevice(a: Device, b: Device): boolean {
  return a.type === b.type && a.index === b.index;
}

/** Name of a device, as the command line and the configuration write it: `cpu` or `cuda:0`. */
export function deviceName(device: Device): string {
  return device.type === "cpu" ? "cpu" : `cuda:${device.index}`;
}

/**
 * Parses the name of a device: `cpu`, `cuda` (the first GPU) or `cuda:N`.
 * @throws DeviceError for any other name
 */
export function parseDevice(name: string): Device {
  const expected = '[device] expected "cpu", "cuda" or "cuda:N"';
  if (typeof name !== "string") {
    throw new DeviceError(`${expected}, got ${describe(name)}`);
  }
  if (name === "cpu") return cpu;
  const index = /^cuda(?::(\d{1,3}))?$/.exec(name);
  if (index) return cuda(Number(index[1] ?? 0));
  throw new DeviceError(`${expected}, got ${JSON.stringify(name)}`);
}
