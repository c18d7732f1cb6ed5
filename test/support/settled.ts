import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { synchronize } from "../../lib/core/runtime.js";

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;

/**
 * Resolves when the device is idle and all unreachable handles are collected. Without it, handles
 * of earlier tests disappear at any time, and memory() may be lower after a test than before.
 */
export async function settled(): Promise<void> {
  await synchronize();
  for (let turn = 0; turn < 3; turn++) {
    collect();
    // Finalizers run when the event loop turns.
    await new Promise((resolve) => setImmediate(resolve));
  }
  await synchronize();
}
