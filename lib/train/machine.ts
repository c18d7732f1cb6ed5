import { cpus } from "node:os";
import { type Device, deviceName } from "../core/device.js";
import { DeviceError } from "../core/errors.js";

/** Name of the processor as the operating system gives it. On ARM64 many have none. */
export function processorName(): string {
  const name = cpus()[0]?.model.trim().replace(/\s+/g, " ");
  return name && name !== "unknown" ? name : `${process.arch} CPU`;
}

/**
 * Name of the hardware that a run computes on, for its report: the GPU, or the processor with its
 * threads.
 * @throws DeviceError if the device cannot be used, with the reason and the remedy
 */
export async function describeDevice(device: Device): Promise<string> {
  // Imported lazily, so that `doctor` can report an addon that does not load.
  const { buildInfo, cudaInfo } = await import("../core/native.js");
  if (device.type === "cpu") {
    const { threads, instructionSet } = buildInfo();
    return `${processorName()}, ${threads} ${threads === 1 ? "thread" : "threads"}, ${instructionSet}`;
  }
  const { devices } = cudaInfo();
  const gpu = devices[device.index];
  if (gpu !== undefined) return gpu.name;
  const known = devices.map(({ name }, index) => `cuda:${index} (${name})`).join(", ");
  throw new DeviceError(
    `[device] there is no ${deviceName(device)}; this process sees ${known || "no GPU"}`,
  );
}
