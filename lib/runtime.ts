/** A device as a whole: waiting for it, and its memory. */
import { checkDevice } from "./check.js";
import { type Device, defaultDevice } from "./device.js";
import { addon, deviceNumber, type NativeMemory, typedNativeError } from "./native.js";

function numberOf(op: string, device: Device): number {
  checkDevice(op, "device", device);
  return deviceNumber(device);
}

/** Waits until the device has run everything enqueued so far. @throws the first failure since the last wait */
export async function synchronize(device: Device = defaultDevice()): Promise<void> {
  await reachedAt(device);
}

/**
 * The same, and when the device got there, by performance.now(): JS may come round much later, as launches wait once a GPU's
 * queue is full.
 */
export async function reachedAt(device: Device): Promise<number> {
  const number = numberOf("synchronize", device);
  try {
    const reached = await addon.synchronize(number);
    const late = Number(process.hrtime.bigint()) / 1e6 - reached;
    return performance.now() - late;
  } catch (error) {
    throw typedNativeError(error);
  }
}

/** Live tensors and bytes of a device: in use now, highest so far, and kept for reuse. */
export function memory(device: Device = defaultDevice()): NativeMemory {
  return addon.memory(numberOf("memory", device));
}

/** Starts the count of `memory().peakBytes` anew. */
export function resetPeakMemory(device: Device = defaultDevice()): void {
  addon.resetPeakMemory(numberOf("resetPeakMemory", device));
}

/** Highest number of bytes that tensors of a device may take; 0: what the machine has. */
export function setMemoryLimit(bytes: number, device: Device = defaultDevice()): void {
  const number = numberOf("setMemoryLimit", device);
  try {
    addon.setMemoryLimit(number, bytes);
  } catch (error) {
    throw typedNativeError(error);
  }
}
