import type { Device } from "../core/device.js";
import { OutOfMemoryError } from "../core/errors.js";
import { usableMemory } from "../core/machine-limits.js";
import { gpuFreeBytes } from "../core/native.js";
import { synchronize } from "../core/runtime.js";
import { type MemoryShape, planMemory } from "../plan/memory.js";

/** Tokens beyond which a larger micro-batch does not use the device any better. */
const mostTokens = { cpu: 4096, cuda: 65_536 };

/** Share of the free memory that a plan may use, because the plan is an estimate. */
const usableShare = 0.95;

/** Free memory of a device in bytes. */
export function freeMemory(device: Device): number {
  if (device.type === "cpu") return usableMemory().freeBytes;
  return gpuFreeBytes(device.index);
}

/**
 * Micro-batches worth trying, largest first: the largest power of two whose plan fits into the free
 * memory, and half of it. If none fits, the only candidate is 1, so that the error names the
 * missing memory.
 */
export function candidateMicroBatches(
  shape: Omit<MemoryShape, "batch">,
  device: Device,
  freeBytes: number,
): number[] {
  const fits = (microBatch: number): boolean => {
    const parts = Object.values(
      planMemory({ ...shape, batch: { microBatch }, device: device.type }),
    );
    return parts.reduce((sum, bytes) => sum + bytes, 0) <= usableShare * freeBytes;
  };
  const { sequenceLength } = shape.data;
  let largest = 1;
  while (2 * largest * sequenceLength <= mostTokens[device.type] && fits(2 * largest)) largest *= 2;
  return largest === 1 ? [1] : [largest, largest / 2];
}

/**
 * The fastest of some micro-batches, largest first. A micro-batch that runs out of memory is
 * skipped. If none has fitted, the last one is halved until one fits.
 * @param measure tokens/s of a micro-batch
 * @throws OutOfMemoryError if not even one window fits
 */
export async function fastestMicroBatch(
  candidates: readonly number[],
  device: Device,
  measure: (microBatch: number) => Promise<number>,
): Promise<number> {
  const queue = [...candidates];
  let best = { microBatch: 0, rate: 0 };
  for (let microBatch = queue.shift(); microBatch !== undefined; microBatch = queue.shift()) {
    try {
      const rate = await measure(microBatch);
      if (rate > best.rate) best = { microBatch, rate };
    } catch (error) {
      if (!(error instanceof OutOfMemoryError) || microBatch === 1) throw error;
      // The work enqueued by the failed step must end before the next try.
      await synchronize(device).catch(() => {});
      if (best.rate === 0 && queue.length === 0) queue.push(Math.floor(microBatch / 2));
    }
  }
  return best.microBatch;
}
