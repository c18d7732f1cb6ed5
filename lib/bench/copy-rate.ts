import { empty } from "../core/create.js";
import type { Device } from "../core/device.js";
import { native } from "../core/native.js";
import { scope } from "../core/scope.js";
import { randn } from "../ops/index.js";
import { timeCalls } from "./measure.js";

/** Bytes of one of the two tensors of the copy; large enough that nothing stays in a cache. */
const copyBytes = { cpu: 2 ** 27, cuda: 2 ** 29 };

/**
 * Bytes per second of a large copy on a device, reads and writes added. The values are random,
 * because a chip that moves equal bits draws less power and runs faster.
 */
export async function copyRate(
  device: Device,
  precision: "bf16" | "fp32",
  runs = 5,
): Promise<number> {
  const dtype = precision === "bf16" ? "bf16" : "f32";
  const bytes = copyBytes[device.type];
  const shape = [bytes / (dtype === "bf16" ? 2 : 4)];
  return await scope(async () => {
    const from = randn(shape, { dtype, device, seed: 1 });
    const to = empty(shape, { dtype, device });
    const copy = () => native.cast(from.native, to.native);
    return (2 * bytes) / (await timeCalls(copy, { device, runs, leastMs: 30 }));
  });
}
