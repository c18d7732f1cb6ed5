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
 * Waits like `synchronize()` and tells when the device got there, by performance.now(): JavaScript that is busy comes round
 * later.
 */
export async function reachedAt(device: Device): Promise<number> {
  const number = numberOf("synchronize", device);
  try {
    return ownTime(await addon.synchronize(number));
  } catch (error) {
    throw typedNativeError(error);
  }
}

/**
 * Tells when the device got there, by performance.now(), and leaves a failure to the next wait: whoever waits for the work
 * itself must hear of it, and what was enqueued behind it must be left out.
 */
export async function passedAt(device: Device): Promise<number> {
  return ownTime(await addon.passed(numberOf("passed", device)));
}

/** A moment of the clock of process.hrtime by performance.now(). */
function ownTime(moment: number): number {
  const late = Number(process.hrtime.bigint()) / 1e6 - moment;
  return performance.now() - late;
}

/**
 * Lets the event loop take its turn, and waits while the device is far behind: from 4,096 operations that it has not begun
 * until half of them are left. Operations return at once, so a loop that awaits nothing else, such as one over many
 * micro-batches, would record without end and keep timers and sockets waiting. It awaits this between two of them; the
 * device does not run dry meanwhile.
 */
export async function ready(device: Device = defaultDevice()): Promise<void> {
  const number = numberOf("ready", device);
  try {
    await (addon.ready(number) ?? new Promise((resolve) => setImmediate(resolve)));
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
