import { type LoadedConfig, resolveConfig } from "../config/index.js";
import { deviceName } from "../core/device.js";
import { resetPeakMemory } from "../core/runtime.js";
import type { StepMetrics } from "../train/metrics.js";
import { Trainer } from "../train/trainer.js";
import type { BenchModel } from "./bare-loop.js";

export interface TrainerBenchOptions extends BenchModel {
  sequenceLength: number;
  microBatch: number;
  accumulation: number;
  /** Measured steps, which follow the `warmup` steps. */
  steps: number;
  warmup: number;
  /** Folder of the data set. */
  data: string;
  /** Folder of the run. */
  out: string;
}

/** The configuration of a run for measurement. */
export function benchConfig(options: TrainerBenchOptions, more: object = {}): LoadedConfig {
  const { model, device, precision, recompute, sequenceLength, microBatch, accumulation } = options;
  return resolveConfig({
    name: "bench",
    out: options.out,
    device: deviceName(device),
    precision,
    recompute,
    steps: options.warmup + options.steps,
    model,
    data: { train: { [options.data]: 1 }, sequenceLength },
    batch: { microBatch, accumulation },
    optimizer: { peakLr: 1e-4, minLr: 1e-4, warmupSteps: 0 },
    checkpoint: { every: 0 },
    evaluate: { every: 0, batches: 1 },
    ...more,
  });
}

/**
 * Trains with the Trainer as `llamaforge train` does, including its loader, tokenizer and
 * metrics.jsonl, but saves no checkpoints.
 * @returns the records of the measured steps; the peak of `memory()` covers only these steps
 */
export async function throughTrainer(options: TrainerBenchOptions): Promise<StepMetrics[]> {
  const trainer = await Trainer.create(benchConfig(options), {
    checkpoints: false,
    // The data of a measurement hold nothing out.
    onNotice: (message) => {
      if (!message.startsWith("no validation loss")) console.warn(message);
    },
  });
  const steps: StepMetrics[] = [];
  try {
    if (options.warmup === 0) resetPeakMemory(options.device);
    for await (const step of trainer.run()) {
      if (step.step === options.warmup) resetPeakMemory(options.device);
      if (step.step > options.warmup) steps.push(step);
    }
  } finally {
    trainer.dispose();
  }
  return steps;
}
