import { type Precision, weightsDtype } from "../config/resolve.js";
import { full } from "../core/create.js";
import type { Device } from "../core/device.js";
import { synchronize } from "../core/runtime.js";
import { scope } from "../core/scope.js";
import { createModel } from "../model/architectures.js";
import { batchTensors, type HostBatch } from "../model/batch.js";
import type { LanguageModel, Recompute } from "../model/language-model.js";
import type { ArchitectureConfig } from "../model/shapes.js";
import { AdamW } from "../optim/adamw.js";
import { HostMeter } from "../train/host-meter.js";
import type { HostStep } from "../train/run-times.js";
import { type RunningStep, trainStep } from "../train/step.js";
import { median } from "./environment.js";

/** The model, the batch and the data of a bare loop. */
export interface BenchModel {
  model: ArchitectureConfig;
  device: Device;
  precision: Precision;
  recompute: Recompute;
}

/**
 * Milliseconds of a step's parts. They are measured apart from the headline, with a wait after each
 * part.
 */
export interface StepParts {
  /** Copying the ids to the device. */
  input: number;
  /**
   * Includes the gradients of the output head, because the fused head computes them together with
   * the loss.
   */
  forward: number;
  backward: number;
  optimizer: number;
}

/** One step of the loop. */
export interface BareStep {
  ms: number;
  host: HostStep;
}

/**
 * Runs `trainStep` in a loop on micro-batches in memory, with two steps enqueued at a time. It has
 * no data set, tokenizer or records, and is the baseline for `train`.
 */
export class BareLoop {
  readonly model: LanguageModel;
  readonly #optimizer: AdamW;

  private constructor(model: LanguageModel) {
    this.model = model;
    this.#optimizer = new AdamW(model.store, { weightDecay: 0.1 });
  }

  static async create({ model: shape, device, precision, recompute }: BenchModel) {
    const dtype = weightsDtype(precision);
    const model = await createModel(shape, { device, dtype, seed: 3407 });
    model.recompute = recompute;
    model.fp8 = precision === "fp8";
    const loop = new BareLoop(model);
    await synchronize(device);
    return loop;
  }

  /**
   * Runs warm-up steps until the device is idle, then the measured steps. Each of these is timed
   * from the end of the previous step to its own end.
   * @param batches micro-batches of one step
   */
  async steps(batches: readonly HostBatch[], warmup: number, steps: number): Promise<BareStep[]> {
    await this.#run(batches, warmup);
    return await this.#run(batches, steps);
  }

  async #run(batches: readonly HostBatch[], steps: number): Promise<BareStep[]> {
    const measured: BareStep[] = [];
    const meter = new HostMeter();
    let last = performance.now();
    let running: RunningStep | null = null;
    for (let step = 0; step <= steps; step++) {
      const next: RunningStep | null = step < steps ? await this.#enqueue(batches) : null;
      if (running) {
        const { at } = await running.figures;
        const { forward, backward, optimizer } = running.clock.recordingMs;
        const parts = { forwardMs: forward, backwardMs: backward, optimizerMs: optimizer };
        const host = { ...meter.lap(), ...parts, loaderMs: 0, metricsMs: 0 };
        measured.push({ ms: at - last, host });
        last = at;
      }
      running = next;
    }
    meter.stop();
    return measured;
  }

  #enqueue(batches: readonly HostBatch[]): Promise<RunningStep> {
    const left = batches.values();
    return trainStep({
      model: this.model,
      optimizer: this.#optimizer,
      nextBatch: async () => left.next().value as HostBatch,
      accumulation: batches.length,
      lr: 1e-4,
      clip: 1,
    });
  }

  /**
   * Median milliseconds of a step's parts. A wait after each part separates them, so their sum is
   * longer than a step.
   */
  async parts(batches: readonly HostBatch[], steps: number): Promise<StepParts> {
    const measured: StepParts[] = [];
    for (let step = 0; step < steps; step++) measured.push(await this.#step(batches));
    const of = (part: keyof StepParts): number => median(measured.map((parts) => parts[part]));
    return {
      input: of("input"),
      forward: of("forward"),
      backward: of("backward"),
      optimizer: of("optimizer"),
    };
  }

  async #step(batches: readonly HostBatch[]): Promise<StepParts> {
    const { model } = this;
    const { device } = model;
    const parts: StepParts = { input: 0, forward: 0, backward: 0, optimizer: 0 };
    let last = performance.now();
    const lap = async (part: keyof StepParts): Promise<void> => {
      await synchronize(device);
      const now = performance.now();
      parts[part] += now - last;
      last = now;
    };
    await scope(async () => {
      const meanLoss = full([], 0, { device });
      await synchronize(device);
      last = performance.now();
      for (const read of batches) {
        await scope(async () => {
          const batch = batchTensors(read, device);
          await lap("input");
          const loss = model.loss(batch);
          await lap("forward");
          loss.backward({ scale: 1 / batches.length });
          await lap("backward");
        });
      }
      this.#optimizer.step({ lr: 1e-4, clip: 1, loss: meanLoss });
      await lap("optimizer");
    });
    return parts;
  }

  dispose(): void {
    this.#optimizer.dispose();
    this.model.dispose();
  }
}
