import { cpus } from "node:os";
import { type Device, deviceName } from "../core/device.js";
import { DeviceError } from "../core/errors.js";

/** The processor's name as the operating system gives it. */
export function processorName(): string {
  return cpus()[0]?.model.trim().replace(/\s+/g, " ") || `${process.arch} CPU`;
}

/**
 * What a run computes on, as its report names it: the GPU's name, or the processor with its threads.
 * @throws DeviceError if the device cannot be used, saying why and what to do
 */
export async function describeDevice(device: Device): Promise<string> {
  // Imported here, so that `doctor` can say what is wrong with an addon that does not load.
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
