import { noGrad } from "../core/autograd.js";
import type { Device } from "../core/device.js";
import { synchronize } from "../core/runtime.js";
import { scope } from "../core/scope.js";
import { median } from "./environment.js";

export interface TimingOptions {
  device: Device;
  /** Timed runs; the result is their median. */
  runs: number;
  /** Minimum length of a run in milliseconds. Short calls are repeated to reach it. */
  leastMs: number;
}

/**
 * Seconds per call, measured over back-to-back calls between two waits for the device, after some
 * warm-up calls. Tensors made by a call are freed after it.
 */
export async function timeCalls(call: () => void, options: TimingOptions): Promise<number> {
  const { device, runs, leastMs } = options;
  const timed = async (count: number): Promise<number> => {
    await synchronize(device);
    const start = performance.now();
    for (let i = 0; i < count; i++) scope(() => noGrad(call));
    await synchronize(device);
    return (performance.now() - start) / 1000 / count;
  };
  await timed(2);
  const once = await timed(2);
  const count = Math.max(1, Math.min(2000, Math.ceil(leastMs / 1000 / once)));
  const times: number[] = [];
  for (let run = 0; run < runs; run++) times.push(await timed(count));
  return median(times);
}
