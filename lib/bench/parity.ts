import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
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
  /** What the model is called in the output. */
  modelName: string;
  sequenceLength: number;
  /** Windows at a time; left out: the fastest that fits. */
  microBatch?: number;
  /** Micro-batches of a step. */
  accumulation: number;
  /** Steps that are timed, after `warmup` that are not. */
  steps: number;
  warmup: number;
  /** A data set of `prepare`; left out: random words. */
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
    precision: "bf16" | "fp32";
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
  /** What the device waited for in those steps, in all, and how long they took. */
  waitMs: WaitTotals & { ofMs: number };
  /** What the main thread did, and V8's collections: means of a step. */
  host: HostStep;
  /** `trainStep` in a loop on micro-batches that are there already, half of the steps before and half after. */
  bare: { tokensPerSecond: number; stepMs: StepTimes; host: HostStep };
  /** tokensPerSecond through the Trainer, of those of the bare loop. */
  trainOfBare: number;
  /** Of the bare loop. */
  partsMs: StepParts;
  /** Largest sum of tensors at a time, and what the library holds of the device's memory. */
  memory: { peakBytes: number; reservedBytes: number };
  /** Mean loss of the first and the last timed step. */
  loss: { first: number; last: number };
  figures: ParityFigures;
  peer?: PeerResult & { ratio: number };
}

/** Steps for the parts, and to choose a micro-batch by. */
const fewSteps = 3;

/** Steps that warm up a loop of which the caller said nothing. */
const fewWarmups = 2;

/** Trains for some steps, through the Trainer and in a bare loop, and measures both. */
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

    // The bare loop in two halves around the Trainer, as clocks drift: what differs is what the Trainer adds.
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

/** The micro-batches of one step. */
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

/** Trains a model of its own, which is gone afterwards. */
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
