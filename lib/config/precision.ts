/** Resolves `precision: auto`: bf16 if the device computes in it, otherwise fp32. */
import type { Checkpoint } from "../checkpoint/load.js";
import { buildInfo } from "../core/native.js";
import type { LoadedConfig, Precision, RunConfig } from "./resolve.js";

/**
 * Whether the device multiplies bf16 matrices directly. CPU kernels other than those for AVX-512's
 * bf16 instructions widen bf16 to fp32 for each product, which is no faster than fp32 and rounds
 * more.
 */
export function computesInBf16(device: string): boolean {
  return device !== "cpu" || buildInfo().instructionSet === "avx512-bf16";
}

/**
 * Decides the precision of a configuration. A resumed run keeps the precision of its checkpoint, so
 * that it can move to another machine.
 * @param checkpoint checkpoint that the run resumes from; null for a new run
 */
export function decidePrecision(config: LoadedConfig, checkpoint: Checkpoint | null): RunConfig {
  if (config.precision !== "auto") return config as RunConfig;
  const saved = checkpoint?.manifest.run.precision;
  if (saved === "bf16" || saved === "fp32" || saved === "fp8")
    return { ...config, precision: saved };
  return { ...config, precision: precisionOf(config.device) };
}

/** The precision that `auto` selects on a device: "cpu", "cuda" or "cuda:N". */
export function precisionOf(device: string): Precision {
  return computesInBf16(device) ? "bf16" : "fp32";
}

/**
 * Describes the precision and, for `auto`, the reason for it: `bf16 (auto: this CPU computes in
 * it)`.
 */
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
    : `fp32 (auto: the kernels for ${buildInfo().instructionSet} have no products in bf16)`;
}
