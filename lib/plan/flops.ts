import type { RunConfig } from "../config/index.js";
import { checkInteger, checkNumber } from "../core/check-values.js";
import type { FlopsPerToken } from "../model/cost.js";
import { type ArchitectureConfig, costFor } from "../model/shapes.js";
import { orthogonalFlops } from "../optim/orthogonal.js";
import { muonMatrices } from "./memory.js";

/**
 * Counts the training FLOPs of one token, without recomputation. For a recipe that masks attention
 * across documents (`data.maskDocuments`), the count ignores the mask, because the saving depends
 * on the data.
 * @see Kaplan et al. 2020, arXiv 2001.08361 (6N); PaLM, arXiv 2204.02311, appendix B (attention)
 */
export function flopsPerToken(config: ArchitectureConfig, sequenceLength: number): FlopsPerToken {
  const cost = costFor("flopsPerToken", config);
  checkInteger("flopsPerToken", "sequenceLength", sequenceLength, { min: 1 });
  return cost.flops(sequenceLength);
}

/** FLOPs of a step's optimizer on all devices together: Muon's products; 0 with AdamW. */
export function optimizerFlops({
  model,
  optimizer,
}: Pick<RunConfig, "model" | "optimizer">): number {
  if (optimizer.type !== "muon") return 0;
  return muonMatrices(model).reduce(
    (sum, [rows, columns]) => sum + orthogonalFlops(rows, columns),
    0,
  );
}

/**
 * Dense bf16 peak of a device in TFLOP/s, from NVIDIA's data sheets (half of their sparse figures).
 */
interface Peak {
  pattern: RegExp;
  name: string;
  tflops: number;
}

/** The first match wins, so the special variants stand before the general name. */
const peaks: readonly Peak[] = [
  { pattern: /B200/, name: "B200", tflops: 2250 },
  { pattern: /GH200|H200/, name: "H200", tflops: 989.4 },
  { pattern: /\bH[18]00\b.*PCIe/i, name: "H100 PCIe", tflops: 756 },
  { pattern: /\bH100\b.*NVL/i, name: "H100 NVL", tflops: 835 },
  { pattern: /\bH[18]00\b/, name: "H100 SXM", tflops: 989.4 },
  { pattern: /\bA[18]00\b/, name: "A100", tflops: 312 },
  { pattern: /L40S/, name: "L40S", tflops: 362 },
  { pattern: /\bL4\b/, name: "L4", tflops: 121 },
  { pattern: /\bA40\b/, name: "A40", tflops: 149.7 },
  { pattern: /\bA30\b/, name: "A30", tflops: 165 },
  { pattern: /\bA10\b/, name: "A10", tflops: 125 },
  { pattern: /RTX 5090/, name: "RTX 5090", tflops: 209.5 },
  { pattern: /RTX 4090/, name: "RTX 4090", tflops: 165.2 },
  { pattern: /RTX 3090/, name: "RTX 3090", tflops: 71 },
];

/**
 * The peak that a model FLOP utilisation refers to.
 * @param deviceName as the driver gives it, e.g. `NVIDIA H100 80GB HBM3`
 * @returns undefined for a device that is not in the table, because no utilisation is better than a
 *   wrong one
 */
export function peakOf(deviceName: string): { name: string; tflops: number } | undefined {
  const peak = peaks.find(({ pattern }) => pattern.test(deviceName));
  return peak && { name: peak.name, tflops: peak.tflops };
}

/** Share of a device's peak that the model's own FLOPs reach; recomputation does not count. */
export function modelFlopsUtilisation(
  tokensPerSecond: number,
  flopsPerTokenCounted: number,
  peakTflops: number,
): number {
  const op = "modelFlopsUtilisation";
  checkNumber(op, "tokensPerSecond", tokensPerSecond, { min: 0 });
  checkNumber(op, "flopsPerTokenCounted", flopsPerTokenCounted, { min: 0 });
  checkNumber(op, "peakTflops", peakTflops, { min: 0 });
  return (tokensPerSecond * flopsPerTokenCounted) / (peakTflops * 1e12);
}
