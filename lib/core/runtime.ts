/** Operations on a whole device: waiting for it, and its memory. */
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
 * Waits like `synchronize()`. Resolves to the time at which the device got there, by
 * performance.now(); busy JavaScript may learn of it later.
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
 * Resolves to the time at which the device gets to this point, by performance.now(). A failure is
 * left to the next wait: the code that waits for the work itself must hear of it, and the
 * operations enqueued after it must be skipped.
 */
export async function passedAt(device: Device): Promise<number> {
  return ownTime(await addon.passed(numberOf("passed", device)));
}

/** Converts a time of the addon's clock to performance.now(). */
function ownTime(moment: number): number {
  const late = addon.clock() - moment;
  return performance.now() - late;
}

/**
 * Gives the event loop a turn, and waits while the device is far behind: from 4,096 unstarted
 * operations until half of them are left. Operations return at once, so a loop without another
 * await, such as one over many micro-batches, would record without end and starve timers and
 * sockets. Such a loop awaits this function between two micro-batches. The device does not run dry
 * meanwhile.
 */
export async function ready(device: Device = defaultDevice()): Promise<void> {
  const number = numberOf("ready", device);
  try {
    await (addon.ready(number) ?? new Promise((resolve) => setImmediate(resolve)));
  } catch (error) {
    throw typedNativeError(error);
  }
}

/**
 * Memory of a device: live tensors and their bytes, in use now, highest so far, and kept for reuse.
 */
export function memory(device: Device = defaultDevice()): NativeMemory {
  return addon.memory(numberOf("memory", device));
}

/** Restarts the measurement of `memory().peakBytes`. */
export function resetPeakMemory(device: Device = defaultDevice()): void {
  addon.resetPeakMemory(numberOf("resetPeakMemory", device));
}

/**
 * Sets the largest number of bytes that a device's tensors may take; 0 allows all of the machine's
 * memory.
 */
export function setMemoryLimit(bytes: number, device: Device = defaultDevice()): void {
  const number = numberOf("setMemoryLimit", device);
  try {
    addon.setMemoryLimit(number, bytes);
  } catch (error) {
    throw typedNativeError(error);
  }
}
