import { full, tensor } from "../create.js";
import type { Loader } from "../data/loader.js";
import type { Device } from "../device.js";
import type { LlamaConfig } from "../model/config.js";
import { Llama, type Recompute } from "../model/llama.js";
import { AdamW } from "../optim/adamw.js";
import { memory, resetPeakMemory, synchronize } from "../runtime.js";
import { scope } from "../scope.js";
import type { Tensor } from "../tensor.js";
import { describeDevice } from "../train/machine.js";
import { type RunningStep, trainStep } from "../train/step.js";
import { type BenchEnvironment, benchEnvironment, median } from "./environment.js";
import { type ParityFigures, parityFigures } from "./figures.js";
import { candidateMicroBatches, fastestMicroBatch, freeMemory } from "./micro-batch.js";
import type { PeerResult } from "./peer.js";
import { openTokens } from "./tokens.js";

export interface ParityOptions {
  /** What the model is called in the output. */
  modelName: string;
  model: LlamaConfig;
  sequenceLength: number;
  device: Device;
  precision: "bf16" | "fp32";
  recompute: Recompute;
  /** Windows at a time; left out: the fastest that fits. */
  microBatch?: number;
  /** Micro-batches of a step. */
  accumulation: number;
  /** Steps that are timed, after `warmup` that are not. */
  steps: number;
  warmup: number;
  /** A data set of `prepare`; left out: random tokens. */
  data?: string;
  onProgress?: (message: string) => void;
}

/** Milliseconds of a step's parts, measured apart from the headline, with a wait after each part. */
export interface StepParts {
  /** Waiting for the loader and copying the ids. */
  input: number;
  /** Includes the gradients of the output head: the fused head makes them beside the loss. */
  forward: number;
  backward: number;
  optimizer: number;
}

export interface ParityResult extends BenchEnvironment {
  benchmark: "parity";
  model: { name: string; parameters: number } & LlamaConfig;
  run: {
    sequenceLength: number;
    precision: "bf16" | "fp32";
    recompute: Recompute;
    microBatch: number;
    accumulation: number;
    tokensPerStep: number;
    steps: number;
    warmup: number;
    data: string;
  };
  /** The headline: median over the timed steps. */
  tokensPerSecond: number;
  stepMs: { median: number; fastest: number; slowest: number };
  partsMs: StepParts;
  /** Largest sum of tensors at a time, and what the library holds of the device's memory. */
  memory: { peakBytes: number; reservedBytes: number };
  /** Mean loss of the first and the last timed step: random tokens stay near ln(vocabulary). */
  loss: { first: number; last: number };
  figures: ParityFigures;
  peer?: PeerResult & { ratio: number };
}

/** Steps for the parts, and to choose a micro-batch by. */
const fewSteps = 3;

/** Trains for some steps and measures. */
export async function benchParity(options: ParityOptions): Promise<ParityResult> {
  const { device, precision, sequenceLength, model: shape, onProgress = () => {} } = options;
  const name = await describeDevice(device);
  const freeBytes = freeMemory(device);
  const tokens = await openTokens(options.data, shape.vocabSize, sequenceLength);
  let training: Training | undefined;
  try {
    onProgress(`${options.modelName} on ${name}`);
    training = await Training.create(options);
    const run = training;
    const rate = async (microBatch: number): Promise<number> => {
      const loader = tokens.open(microBatch);
      try {
        const { times } = await run.steps(loader, 1, 2, fewSteps);
        const tokensPerSecond = (microBatch * sequenceLength) / (median(times) / 1000);
        onProgress(`micro-batch ${microBatch}: ${Math.round(tokensPerSecond)} tokens/s at first`);
        return tokensPerSecond;
      } finally {
        await loader.close();
      }
    };
    const planned = { model: shape, data: { sequenceLength }, precision };
    const microBatch =
      options.microBatch ??
      (await fastestMicroBatch(
        candidateMicroBatches({ ...planned, recompute: options.recompute }, device, freeBytes),
        device,
        rate,
      ));
    const { accumulation, steps, warmup } = options;
    onProgress(
      `${warmup} steps to warm up, ${steps} timed: ${accumulation} x ${microBatch} windows`,
    );
    const loader = tokens.open(microBatch);
    try {
      const { times, losses } = await run.steps(loader, accumulation, warmup, steps);
      const { peakBytes, bytes, cachedBytes } = memory(device);
      const partsMs = await run.parts(loader, accumulation);
      const tokensPerStep = microBatch * accumulation * sequenceLength;
      const tokensPerSecond = tokensPerStep / (median(times) / 1000);
      return {
        benchmark: "parity",
        ...benchEnvironment(device, name),
        model: { name: options.modelName, parameters: run.model.parameterCount(), ...shape },
        run: {
          sequenceLength,
          precision,
          recompute: options.recompute,
          microBatch,
          accumulation,
          tokensPerStep,
          steps,
          warmup,
          data: tokens.description,
        },
        tokensPerSecond,
        stepMs: { median: median(times), fastest: Math.min(...times), slowest: Math.max(...times) },
        partsMs,
        memory: { peakBytes, reservedBytes: bytes + cachedBytes },
        loss: { first: losses[0] as number, last: losses.at(-1) as number },
        figures: parityFigures(shape, sequenceLength, precision, name, tokensPerSecond),
      };
    } finally {
      await loader.close();
    }
  } finally {
    training?.dispose();
    await tokens.close();
  }
}

/** A model with its optimizer, and two ways to run steps: as training does, and taken apart. */
class Training {
  readonly model: Llama;
  readonly optimizer: AdamW;

  private constructor(model: Llama) {
    this.model = model;
    this.optimizer = new AdamW(model.store, { weightDecay: 0.1 });
  }

  static async create({ model: shape, device, precision, recompute }: ParityOptions) {
    const dtype = precision === "bf16" ? "bf16" : "f32";
    const model = await Llama.create(shape, { device, dtype, seed: 3407 });
    model.recompute = recompute;
    const training = new Training(model);
    await synchronize(device);
    return training;
  }

  /**
   * Some steps to warm up, until the device is idle; then those that count.
   * @returns their milliseconds and mean losses; the peak of memory() is theirs alone
   */
  async steps(loader: Loader, accumulation: number, warmup: number, steps: number) {
    await this.#run(loader, accumulation, warmup);
    resetPeakMemory(this.model.device);
    return await this.#run(loader, accumulation, steps);
  }

  /** Steps as the trainer runs them, two enqueued at a time, each from the end of the one before it to its own. */
  async #run(loader: Loader, accumulation: number, steps: number) {
    const times: number[] = [];
    const losses: number[] = [];
    let last = performance.now();
    let running: RunningStep | null = null;
    for (let step = 0; step <= steps; step++) {
      const next: RunningStep | null =
        step < steps
          ? await trainStep({
              model: this.model,
              optimizer: this.optimizer,
              nextBatch: () => loader.next(),
              accumulation,
              lr: 1e-4,
              clip: 1,
            })
          : null;
      if (running) {
        const { loss, at } = await running.figures;
        losses.push(loss);
        times.push(at - last);
        last = at;
      }
      running = next;
    }
    return { times, losses };
  }

  /** Median milliseconds of a step's parts; waiting after each keeps them apart, and makes their sum longer than a step. */
  async parts(loader: Loader, accumulation: number): Promise<StepParts> {
    const { model, optimizer } = this;
    const { device } = model;
    const measured: StepParts[] = [];
    for (let step = 0; step < fewSteps; step++) {
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
        for (let micro = 0; micro < accumulation; micro++) {
          const { inputs, targets, count } = await loader.next();
          await scope(async () => {
            const ids = (data: Int32Array): Tensor =>
              tensor(data, { shape: [count, data.length / count], dtype: "i32", device });
            const [x, y] = [ids(inputs), ids(targets)];
            await lap("input");
            const loss = model.loss(x, y);
            await lap("forward");
            loss.backward({ scale: 1 / accumulation });
            await lap("backward");
          });
        }
        optimizer.step({ lr: 1e-4, clip: 1, loss: meanLoss });
        await lap("optimizer");
      });
      measured.push(parts);
    }
    const of = (part: keyof StepParts): number => median(measured.map((parts) => parts[part]));
    return {
      input: of("input"),
      forward: of("forward"),
      backward: of("backward"),
      optimizer: of("optimizer"),
    };
  }

  dispose(): void {
    this.optimizer.dispose();
    this.model.dispose();
  }
}
