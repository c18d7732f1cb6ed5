// The training loop by hand. The Trainer adds checkpoints, charts and the limits of the step guard.
import { AdamW, cosineSchedule, Llama, type LlamaConfig, Mixture, scope } from "llamaforge";

export interface LoopOptions {
  /** Data set folders made by `llamaforge prepare`, and their weights. */
  data: Record<string, number>;
  config: LlamaConfig;
  steps: number;
  microBatch?: number;
  accumulation?: number;
  sequenceLength?: number;
  report?: (step: number, loss: number, gradNorm: number) => void;
}

export async function trainByHand(options: LoopOptions): Promise<Llama> {
  const { config, steps, microBatch = 8, accumulation = 1, report = console.log } = options;
  const { sequenceLength = config.contextLength } = options;
  const data = await Mixture.open(options.data, { sequenceLength, seed: 1 });
  const model = await Llama.create(config, { dtype: "bf16", seed: 1 });
  const optimizer = new AdamW(model.store, { weightDecay: 0.1 });
  const warmupSteps = Math.min(100, Math.floor(steps / 10));
  const schedule = cosineSchedule({ peakLr: 2e-3, minLr: 2e-4, warmupSteps, decaySteps: steps });

  for (let step = 0; step < steps; step++) {
    using _ = scope(); // frees every tensor made below at the end of the iteration
    let loss = null;
    for (let micro = 0; micro < accumulation; micro++) {
      loss = model.loss(await data.next(microBatch)); // fused output head and cross-entropy
      loss.backward({ scale: 1 / accumulation }); // gradients add up in f32
    }
    const { gradNorm } = optimizer.step({ lr: schedule(step), clip: 1 });
    // The only place that waits for the device.
    if (loss && step % 10 === 0) report(step, await loss.item(), await gradNorm.item());
  }
  await data.close();
  optimizer.dispose();
  return model;
}
