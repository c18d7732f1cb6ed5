import { createRequire } from "node:module";
import { constants } from "node:os";
import { fileURLToPath } from "node:url";
import { addonFile } from "./native-load.js";

/**
 * Ends the process with a code, whatever its other threads wait for: `process.exit` waits for reads under way, and one of a
 * network disk that has gone never ends. Nothing here waits for a thread either. A process whose addon does not load is
 * killed, for nothing else ends it for sure.
 */
export function exitAtOnce(code: number): never {
  try {
    const root = fileURLToPath(new URL("../..", import.meta.url));
    const addon = createRequire(import.meta.url)(addonFile(root)) as {
      exitNow(code: number): never;
    };
    return addon.exitNow(code);
  } catch {
    process.kill(process.pid, "SIGKILL");
    throw new Error("unreachable");
  }
}

/** The exit code by which shells name a signal that ended a process: 143 for SIGTERM. */
export function codeOfSignal(signal: NodeJS.Signals): number {
  return 128 + constants.signals[signal];
}
