import { DeviceError } from "./errors.js";

/** Where tensors live and operations run: the CPU, or one GPU. Compare with `sameDevice`. */
export interface Device {
  readonly type: "cpu" | "cuda";
  /** Index among the devices of its type; 0 for the CPU. */
  readonly index: number;
}

/** The CPU: operations run on a native thread of their own with an OpenMP team. */
export const cpu: Device = Object.freeze({ type: "cpu", index: 0 });

export function sameDevice(a: Device, b: Device): boolean {
  return a.type === b.type && a.index === b.index;
}

/** `cpu` or `cuda:0`, as the command line and the configuration write it. */
export function deviceName(device: Device): string {
  return device.type === "cpu" ? "cpu" : `cuda:${device.index}`;
}

/**
 * The device of a name: `cpu`, `cuda` (the first GPU) or `cuda:N`.
 * @throws DeviceError if the name is none of these, or asks for a GPU, which this version cannot use
 */
export function parseDevice(name: string): Device {
  if (name === "cpu") return cpu;
  if (/^cuda(:\d{1,3})?$/.test(name)) {
    throw new DeviceError(
      `[device] "${name}" was asked for, but this version of LlamaForge has no CUDA plugin: use "cpu"`,
    );
  }
  throw new DeviceError(`[device] expected "cpu", "cuda" or "cuda:N", got ${JSON.stringify(name)}`);
}
