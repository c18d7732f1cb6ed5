import { noGrad } from "../core/autograd.js";
import type { Device } from "../core/device.js";
import { synchronize } from "../core/runtime.js";
import { scope } from "../core/scope.js";
import { median } from "./environment.js";

export interface TimingOptions {
  device: Device;
  /** Timed runs, whose median counts. */
  runs: number;
  /** Least length of a run in milliseconds: many calls where one is short. */
  leastMs: number;
}

/**
 * Seconds of one call: back-to-back calls between two waits for the device, after some to warm up. What calls make is freed
 * after each.
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
