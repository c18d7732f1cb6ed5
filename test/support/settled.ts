import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { synchronize } from "../../lib/core/runtime.js";

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;

/**
 * Resolves when the device is idle and all handles that nothing holds any more are gone: without it, those of earlier tests
 * go at some time, and memory() is less after a test than before it.
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
