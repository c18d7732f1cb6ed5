import { createRequire } from "node:module";
import { constants } from "node:os";
import { fileURLToPath } from "node:url";
import { addonFile } from "./native-load.js";

/**
 * Ends the process with an exit code at once. `process.exit` waits for reads in progress, and a
 * read from a network disk that is gone never ends; this function waits for no thread. If the addon
 * does not load, the process is killed, because nothing else is certain to end it.
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

/** Exit code by which shells report that a signal ended a process: 143 for SIGTERM. */
export function codeOfSignal(signal: NodeJS.Signals): number {
  return 128 + constants.signals[signal];
}
