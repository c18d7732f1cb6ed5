import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Precision } from "../config/resolve.js";
import { memory } from "../core/runtime.js";
import type { HostBatch } from "../model/batch.js";
import type { ArchitectureConfig } from "../model/shapes.js";
import { addWaits, noWaits, type WaitTotals } from "../train/device-waits.js";
import { describeDevice } from "../train/machine.js";
import { type HostStep, meanHost } from "../train/run-times.js";
import { BareLoop, type BareStep, type BenchModel, type StepParts } from "./bare-loop.js";
import { type BenchEnvironment, benchEnvironment, median } from "./environment.js";
import { type ParityFigures, parityFigures } from "./figures.js";
import { candidateMicroBatches, fastestMicroBatch, freeMemory } from "./micro-batch.js";
import type { PeerResult } from "./peer.js";
import { syntheticDataset } from "./synthetic-data.js";
import { throughTrainer } from "./through-trainer.js";
import { openTokens } from "./tokens.js";

export interface ParityOptions extends BenchModel {
  /** Name of the model in the output. */
  modelName: string;
  sequenceLength: number;
  /** Windows per micro-batch; default: the fastest number that fits. */
  microBatch?: number;
  /** Micro-batches per step. */
  accumulation: number;
  /** Timed steps, which follow the `warmup` steps. */
  steps: number;
  warmup: number;
  /** A data set of `prepare`; default: random words. */
  data?: string;
  onProgress?: (message: string) => void;
}

/** Times of steps in milliseconds. */
export interface StepTimes {
  median: number;
  fastest: number;
  slowest: number;
}

export interface ParityResult extends BenchEnvironment {
  benchmark: "parity";
  model: { name: string; parameters: number } & ArchitectureConfig;
  run: {
    sequenceLength: number;
    precision: Precision;
    recompute: BenchModel["recompute"];
    microBatch: number;
    accumulation: number;
    tokensPerStep: number;
    steps: number;
    warmup: number;
    data: string;
  };
  /** The headline: median over the timed steps of the Trainer, as `train` runs it. */
  tokensPerSecond: number;
  stepMs: StepTimes;
  /**
   * Total waiting time of the device in the timed steps by cause, and the duration of these steps.
   */
  waitMs: WaitTotals & { ofMs: number };
  /** Main-thread work and V8's garbage collections, as means per step. */
  host: HostStep;
  /**
   * The bare loop: `trainStep` on micro-batches in memory, half of the steps before the Trainer's
   * run and half after it.
   */
  bare: { tokensPerSecond: number; stepMs: StepTimes; host: HostStep };
  /** Speed through the Trainer as a share of the bare loop's. */
  trainOfBare: number;
  /** Parts of a step in the bare loop. */
  partsMs: StepParts;
  /** Largest sum of tensors at any time, and device memory reserved by the library. */
  memory: { peakBytes: number; reservedBytes: number };
  /** Mean loss of the first and the last timed step. */
  loss: { first: number; last: number };
  figures: ParityFigures;
  peer?: PeerResult & { ratio: number };
}

/** Steps for measuring the parts, and for choosing a micro-batch. */
const fewSteps = 3;

/** Warm-up steps of a loop for which the caller sets none. */
const fewWarmups = 2;

/** Trains for some steps through the Trainer and in a bare loop, and measures both. */
export async function benchParity(options: ParityOptions): Promise<ParityResult> {
  const { device, model, onProgress = () => {} } = options;
  const name = await describeDevice(device);
  const freeBytes = freeMemory(device);
  onProgress(`${options.modelName} on ${name}`);
  const folder = await mkdtemp(join(tmpdir(), "llamaforge-bench-"));
  try {
    const microBatch = options.microBatch ?? (await chooseMicroBatch(options, freeBytes));
    const { accumulation, sequenceLength, steps, warmup } = options;
    const tokensPerStep = microBatch * accumulation * sequenceLength;
    const tokens = tokensPerStep * (warmup + steps);
    const { vocabSize } = model;
    const data = options.data ?? (await syntheticDataset(folder, { vocabSize, tokens }));
    const batches = await fixedBatches(data, options, microBatch);

    // Clocks drift, so half of the bare loop runs before the Trainer and half after it. The
    // difference between the two is the Trainer's overhead.
    const before = Math.ceil(steps / 2);
    onProgress(`bare loop, ${before} steps of ${accumulation} x ${microBatch} windows`);
    const first = await bareSteps(options, batches, before, true);
    onProgress(`through the Trainer, ${warmup} steps to warm up and ${steps} timed`);
    const out = join(folder, "run");
    const trained = await throughTrainer({ ...options, microBatch, data, out });
    const { peakBytes, bytes, cachedBytes } = memory(device);
    let measured = first.measured;
    if (steps > before) {
      onProgress(`bare loop, ${steps - before} steps`);
      const second = await bareSteps(options, batches, steps - before, false);
      measured = [...measured, ...second.measured];
    }

    const stepMs = timesOf(trained.map((step) => step.stepMs));
    const bareMs = timesOf(measured.map(({ ms }) => ms));
    const speed = (ms: number): number => tokensPerStep / (ms / 1000);
    const tokensPerSecond = speed(stepMs.median);
    const waits = noWaits();
    for (const { deviceWaitMs } of trained) addWaits(waits, deviceWaitMs ?? {});
    return {
      benchmark: "parity",
      ...benchEnvironment(device, name),
      model: { name: options.modelName, parameters: first.parameters, ...model },
      run: {
        sequenceLength,
        precision: options.precision,
        recompute: options.recompute,
        microBatch,
        accumulation,
        tokensPerStep,
        steps,
        warmup,
        data: options.data ?? "synthetic",
      },
      tokensPerSecond,
      stepMs,
      waitMs: { ...waits, ofMs: trained.reduce((sum, step) => sum + step.stepMs, 0) },
      host: meanHost(trained.flatMap(({ host }) => host ?? [])),
      bare: {
        tokensPerSecond: speed(bareMs.median),
        stepMs: bareMs,
        host: meanHost(measured.map(({ host }) => host)),
      },
      trainOfBare: bareMs.median / stepMs.median,
      partsMs: first.parts as StepParts,
      memory: { peakBytes, reservedBytes: bytes + cachedBytes },
      loss: { first: trained[0]?.loss as number, last: trained.at(-1)?.loss as number },
      figures: parityFigures(model, sequenceLength, options.precision, name, tokensPerSecond),
    };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

function timesOf(ms: readonly number[]): StepTimes {
  return { median: median(ms), fastest: Math.min(...ms), slowest: Math.max(...ms) };
}

/** The micro-batches of one step, read in advance. */
async function fixedBatches(
  data: string,
  { model, sequenceLength, accumulation }: ParityOptions,
  microBatch: number,
): Promise<HostBatch[]> {
  const tokens = await openTokens(data, model.vocabSize, sequenceLength);
  const loader = tokens.open(microBatch);
  try {
    const batches: HostBatch[] = [];
    while (batches.length < accumulation) batches.push(await loader.next());
    return batches;
  } finally {
    await loader.close();
    await tokens.close();
  }
}

/** Runs steps of a bare loop with a model of its own, and frees the model afterwards. */
async function bareSteps(
  options: ParityOptions,
  batches: readonly HostBatch[],
  steps: number,
  withParts: boolean,
): Promise<{ measured: BareStep[]; parts: StepParts | null; parameters: number }> {
  const loop = await BareLoop.create(options);
  try {
    const measured = await loop.steps(batches, options.warmup, steps);
    const parts = withParts ? await loop.parts(batches, fewSteps) : null;
    return { measured, parts, parameters: loop.model.parameterCount() };
  } finally {
    loop.dispose();
  }
}

async function chooseMicroBatch(options: ParityOptions, freeBytes: number): Promise<number> {
  const { model, device, precision, recompute, sequenceLength, onProgress = () => {} } = options;
  const loop = await BareLoop.create(options);
  const tokens = await openTokens(options.data, model.vocabSize, sequenceLength);
  try {
    const shape = { model, data: { sequenceLength }, precision, recompute };
    const candidates = candidateMicroBatches(shape, device, freeBytes);
    return await fastestMicroBatch(candidates, device, async (microBatch) => {
      const loader = tokens.open(microBatch);
      try {
        const steps = await loop.steps([await loader.next()], fewWarmups, fewSteps);
        const ms = median(steps.map((step) => step.ms));
        const tokensPerSecond = (microBatch * sequenceLength) / (ms / 1000);
        onProgress(`micro-batch ${microBatch}: ${Math.round(tokensPerSecond)} tokens/s at first`);
        return tokensPerSecond;
      } finally {
        await loader.close();
      }
    });
  } finally {
    loop.dispose();
    await tokens.close();
  }
}
