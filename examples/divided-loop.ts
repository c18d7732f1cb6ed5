// The training loop by hand over several processes, one for each GPU. torchrun, srun or mpirun
// starts them. It adds five parts to custom-loop.ts: the cluster, a rank for the data, a strategy
// for the model, the mean loss, and an orderly end.
import {
  AdamW,
  add,
  Cluster,
  type Device,
  Llama,
  type LlamaConfig,
  Mixture,
  mul,
  noGrad,
  readWorld,
  type StrategyName,
  scope,
  type Tensor,
  zeros,
} from "llamaforge";

export interface DividedLoopOptions {
  /** Data set folders made by `llamaforge prepare`, and their weights. */
  data: Record<string, number>;
  config: LlamaConfig;
  device: Device;
  strategy: StrategyName;
  steps: number;
  /** Windows per process and micro-batch. */
  microBatch: number;
  accumulation: number;
  /** Called on rank 0 only. */
  report: (step: number, loss: number, gradNorm: number) => void;
}

export async function trainTogether(options: DividedLoopOptions): Promise<void> {
  const { device, strategy } = options;
  const world = readWorld(); // null without a launcher: one process trains alone
  const waits = { timeoutMs: 60_000, startTimeoutMs: 300_000 };
  const cluster =
    world && (await Cluster.connect(world, { device, strategy, reduce: "fp32", ...waits }));
  try {
    await train(options, cluster);
    await cluster?.close(); // waits for the other processes
  } catch (error) {
    cluster?.fail(error as Error); // the others get a PeerError with this message
    throw error;
  }
}

async function train(options: DividedLoopOptions, cluster: Cluster | null): Promise<void> {
  const { config, device, steps, microBatch, accumulation, report } = options;
  const { rank, worldSize } = cluster?.world ?? { rank: 0, worldSize: 1 };
  const windows = { sequenceLength: config.contextLength, seed: 1 };
  // Every process reads its own windows of each step. All start from the same weights.
  const data = await Mixture.open(options.data, { ...windows, device, rank, worldSize });
  const shared = cluster ? { parallel: cluster.strategy } : {};
  const model = await Llama.create(config, { device, dtype: "f32", seed: 1, ...shared });
  const optimizer = new AdamW(model.store, { weightDecay: 0.1 });

  for (let step = 0; step < steps; step++) {
    using _ = scope();
    let mean: Tensor = zeros([], { device });
    for (let micro = 0; micro < accumulation; micro++) {
      // The last micro-batch of a step sends the gradients.
      cluster?.strategy.beginMicroBatch(micro === accumulation - 1);
      const loss = model.loss(await data.next(microBatch));
      loss.backward({ scale: 1 / accumulation });
      mean = noGrad(() => add(mean, mul(loss, 1 / accumulation)));
    }
    cluster?.strategy.average(mean); // the mean over all processes
    const { gradNorm } = optimizer.step({ lr: 2e-3, clip: 1, loss: mean }); // norm of all ranks
    const figures = [await mean.item(), await gradNorm.item()] as const;
    if (rank === 0) report(step, ...figures);
  }
  await data.close();
  optimizer.dispose();
  model.dispose();
}
