import { decidePrecision } from "../config/precision.js";
import {
  type LoadedConfig,
  type Precision,
  type RunConfig,
  resolveConfig,
} from "../config/resolve.js";
import { argumentError, checkOptions, checkString } from "../core/check-values.js";
import type { FlopsPerToken, ParameterBreakdown } from "../model/cost.js";
import { costOf } from "../model/shapes.js";
import { optimizerFlops, trainingFlops } from "./flops.js";
import { type MemoryPlan, planMemory, withTotal } from "./memory.js";
import {
  fewestReferenceParameters,
  type MachineOptions,
  planScaling,
  type ScalingPlan,
} from "./scaling.js";

/** Time of a run on a device of a given speed. */
export interface TimeEstimate {
  label: string;
  tokensPerSecond: number;
  seconds: number;
  deviceHours: number;
  /** Device-hours for 300 billion tokens, the measure of TinyLlama's README. */
  hoursPer300B: number;
}

/** Needs of a run: parameters, memory, FLOPs, tokens and time. */
export interface RunPlan {
  /** Precision of weights and activations. With "auto", the device decides. */
  precision: Precision;
  parameters: ParameterBreakdown & { total: number };
  memory: MemoryPlan & { total: number };
  flops: FlopsPerToken & {
    /** The part of `causal` that a frozen reference of preferences computes; 0 without one. */
    reference: number;
  };
  /** FLOPs of the optimizer's products in a step: Muon's; 0 with AdamW. */
  optimizerFlops: number;
  tokensPerStep: number;
  tokens: number;
  /** Estimates for one device; empty if the machine is known. */
  estimates: TimeEstimate[];
  scaling: ScalingPlan | null;
}

/** A100-hours for 300 billion tokens that others have published (TinyLlama's README). */
export const publishedHoursPer300B = [
  { model: "TinyLlama-1.1B", hours: 3456 },
  { model: "Pythia-1.0B", hours: 4830 },
  { model: "MPT-1.3B", hours: 7920 },
] as const;

/**
 * Rates reached on a model of a billion parameters, in causal TFLOP/s per device, including the
 * optimizer.
 */
const references = [
  { label: "A100 at TinyLlama's efficiency", tflops: 162.2 },
  { label: "H100 at PyTorch's (compiled, flash attention)", tflops: 479 },
  { label: "H100 as LlamaForge measured it", tflops: 561.6 },
] as const;

const machineNumbers = [
  "gpus",
  "gpusPerNode",
  "nodeBandwidth",
  "networkBandwidth",
  "tokensPerSecond",
  "tflops",
] as const;

/**
 * Plans memory and time of a run before it starts. With a GPU or a number of GPUs, the plan is for
 * that machine. Otherwise it is for one device of which only the speed is known.
 * @throws ConfigError see `planScaling`
 */
export function planRun(given: LoadedConfig, machine: MachineOptions = {}): RunPlan {
  // Reports errors in a handmade configuration, and fills in its defaults.
  const config = decidePrecision(resolveConfig(given), null);
  checkOptions("planRun", machine, ["gpu", ...machineNumbers]);
  for (const name of machineNumbers) {
    const value: unknown = machine[name];
    // planScaling reports all invalid numbers at once.
    if (value === undefined || typeof value === "number") continue;
    throw argumentError("planRun", "a number", name, value);
  }
  if (machine.gpu !== undefined) checkString("planRun", "gpu", machine.gpu);
  const { model, data, batch, steps } = config;
  const cost = costOf(model);
  const flops = trainingFlops(config);
  const { gpu, gpus, gpusPerNode, nodeBandwidth, networkBandwidth } = machine;
  const scaled = [gpu, gpus, gpusPerNode, nodeBandwidth, networkBandwidth].some(
    (option) => option !== undefined,
  );
  const scaling = scaled ? planScaling(config, machine) : null;
  const ranks = scaling?.gpus ?? 1;
  const tokensPerStep = batch.microBatch * batch.accumulation * ranks * data.sequenceLength;
  const tokens = tokensPerStep * steps;
  const memory = scaling?.chosen.memory ?? withTotal(planMemory(config));
  return {
    precision: config.precision,
    parameters: { ...(cost.parameters as ParameterBreakdown), total: cost.parameterCount },
    memory,
    flops,
    optimizerFlops: optimizerFlops(config),
    tokensPerStep,
    tokens,
    estimates: scaling ? [] : estimatesOf(config, { tokens, causal: flops.causal }, machine),
    scaling,
  };
}

/**
 * Estimated duration on one device, from its known speed or else from rates that others have
 * reached.
 */
function estimatesOf(
  config: RunConfig,
  { tokens, causal }: { tokens: number; causal: number },
  { tokensPerSecond, tflops }: MachineOptions,
): TimeEstimate[] {
  const estimate = (label: string, rate: number): TimeEstimate => ({
    label,
    tokensPerSecond: rate,
    seconds: tokens / rate,
    deviceHours: tokens / rate / 3600,
    hoursPer300B: 300e9 / rate / 3600,
  });
  const rateOf = (achieved: number) => (achieved * 1e12) / causal;
  const estimates: TimeEstimate[] = [];
  if (tokensPerSecond !== undefined) estimates.push(estimate("as measured", tokensPerSecond));
  if (tflops !== undefined) estimates.push(estimate(`at ${tflops} TFLOP/s`, rateOf(tflops)));
  if (config.device !== "cpu" && costOf(config.model).parameterCount >= fewestReferenceParameters) {
    for (const reference of references) {
      estimates.push(estimate(reference.label, rateOf(reference.tflops)));
    }
  }
  return estimates;
}
