/** What `precision: auto` comes to: bf16 where the device computes in it, else fp32. */
import type { Checkpoint } from "../checkpoint/load.js";
import { buildInfo } from "../core/native.js";
import type { LoadedConfig, Precision, RunConfig } from "./resolve.js";

/**
 * Whether the device's matrix products take bf16 as it is. CPUs without AVX-512's bf16 instructions widen it to fp32 for
 * each product: that is no faster than fp32, and rounds more.
 */
export function computesInBf16(device: string): boolean {
  return device !== "cpu" || buildInfo().instructionSet === "avx512-bf16";
}

/**
 * The configuration with its precision decided. A run that goes on keeps the precision of its checkpoint, so that it can move
 * to another machine.
 * @param checkpoint what the run goes on from; null for a new one
 */
export function decidePrecision(config: LoadedConfig, checkpoint: Checkpoint | null): RunConfig {
  if (config.precision !== "auto") return config as RunConfig;
  const saved = checkpoint?.manifest.run.precision;
  if (saved === "bf16" || saved === "fp32") return { ...config, precision: saved };
  return { ...config, precision: precisionOf(config.device) };
}

/** What `auto` is on a device: "cpu", "cuda" or "cuda:N". */
export function precisionOf(device: string): Precision {
  return computesInBf16(device) ? "bf16" : "fp32";
}

/** The precision and, where it was left to the device, why it is this one: `fp32 (auto: this CPU computes in it)`. */
export function describePrecision(
  asked: LoadedConfig["precision"],
  { precision, device }: RunConfig,
): string {
  if (asked !== "auto") return precision;
  const here = precisionOf(device);
  if (here !== precision)
    return `${precision} (auto: as the checkpoint; a new run would take ${here} here)`;
  const what = device === "cpu" ? "this CPU" : "a GPU";
  return here === "bf16"
    ? `bf16 (auto: ${what} computes in it)`
    : "fp32 (auto: this CPU lacks the instructions for bf16)";
}
