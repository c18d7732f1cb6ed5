import { checkFunction, checkInstance } from "../core/check-values.js";

/** Checks the options that hear of a transfer, or stop it. */
export function checkListeners(op: string, onProgress: unknown, signal: unknown): void {
  if (onProgress !== undefined) checkFunction(op, "onProgress", onProgress);
  if (signal !== undefined) checkInstance(op, "signal", signal, AbortSignal, "an AbortSignal");
}
