import type { RunConfig } from "../config/index.js";
import { checkInteger, checkNumber } from "../core/check-values.js";
import type { FlopsPerToken, PartFlops, StepFlops, StepKind } from "../model/cost.js";
import { type ArchitectureConfig, costFor, costOf } from "../model/shapes.js";
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

/** The options that decide the products of a step. */
export interface StepShape extends Pick<RunConfig, "model" | "recompute"> {
  data: { sequenceLength: number };
  /** Low-rank adapters, which alone are trained. */
  lora?: RunConfig["lora"];
  /** Learning from preferences, which needs a reference. */
  dpo?: RunConfig["dpo"];
}

/**
 * FLOPs per token of a recipe's step, by part, as it is computed. Both answers of a pair are taken
 * to be half a window long.
 */
export function stepFlops(
  { model, data, recompute, lora, dpo }: StepShape,
  attention: StepKind["attention"] = "causal",
): StepFlops {
  const length = dpo ? data.sequenceLength / 2 : data.sequenceLength;
  return costOf(model).step(length, {
    ...(lora && { lora }),
    preferences: dpo !== undefined,
    recompute,
    attention,
  });
}

/**
 * FLOPs per token of a recipe's step without recomputation: with adapters, those of a frozen model;
 * with preferences, those of the reference as well. For a model that is trained whole on the next
 * tokens, they are those of `flopsPerToken`.
 */
export function trainingFlops(shape: StepShape): FlopsPerToken & { reference: number } {
  const counted = (attention: "causal" | "full"): PartFlops & { reference: number } => {
    const { reference, blocks, head } = stepFlops(shape, attention);
    const parts = [reference, ...blocks.flatMap(({ forward, backward }) => [forward, backward])];
    const sum = (key: keyof PartFlops) => parts.reduce((all, part) => all + part[key], 0);
    return {
      linear: sum("linear") + head.forward + head.backward,
      attention: sum("attention"),
      reference: flopsOf(reference),
    };
  };
  const [causal, full] = [counted("causal"), counted("full")];
  return {
    linear: causal.linear,
    causalAttention: causal.attention,
    causal: causal.linear + causal.attention,
    fullAttention: full.linear + full.attention,
    reference: causal.reference,
  };
}

/** FLOPs per token that a recipe's step computes again in backward. */
export function recomputedFlops(shape: StepShape): number {
  const { blocks, head } = stepFlops(shape);
  return blocks.reduce((sum, { again }) => sum + flopsOf(again), head.again);
}

/** All FLOPs of a part. */
export const flopsOf = ({ linear, attention }: PartFlops): number => linear + attention;

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
