// One process of run.mjs: trains some steps, alone or with others, as torchrun's variables and
// GPUS_BENCH (JSON, see run.mjs) say. It writes one JSON value per line to stdout: each step as it
// ends, and finally its measurements.
import { createHash } from "node:crypto";
import { median } from "../../dist/bench/environment.js";
import { openTokens } from "../../dist/bench/tokens.js";
import { Cluster } from "../../dist/dist/cluster.js";
import { summariseTimeline } from "../../dist/dist/timeline.js";
import {
  AdamW,
  cosineSchedule,
  Llama,
  memory,
  presets,
  resetPeakMemory,
  scope,
  synchronize,
  trainStep,
} from "../../dist/index.js";
import { deviceOfRank, shareThreads, worldOfRun } from "../../dist/train/join.js";

const options = JSON.parse(process.env.GPUS_BENCH);
const { steps, warmup, microBatch, accumulation, sequenceLength, precision } = options;
const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);

async function main() {
  const world = worldOfRun();
  shareThreads({}, world);
  const device = deviceOfRank(options.device, world);
  const cluster =
    world &&
    (await Cluster.connect(world, {
      device,
      strategy: options.parallel,
      reduce: options.reduce,
      shardSize: options.shardSize,
      timeoutMs: options.timeoutSeconds * 1000,
      startTimeoutMs: 120_000,
    }));
  const shape = { ...presets[options.preset] };
  const model = await Llama.create(shape, {
    device,
    dtype: precision === "fp32" ? "f32" : "bf16",
    seed: 3407,
    ...(cluster && { parallel: cluster.strategy }),
  });
  model.recompute = options.recompute;
  model.fp8 = precision === "fp8";
  const optimizer = new AdamW(model.store, { weightDecay: 0.1 });
  const tokens = await openTokens(options.data, shape.vocabSize, sequenceLength);
  const share = world ? { rank: world.rank, worldSize: world.worldSize } : {};
  const loader = tokens.open(microBatch, share);
  // The schedule is the beginning of TinyLlama's own. With gradients of so few tokens a faster
  // schedule is unstable, and then rounding decides how a run develops.
  const schedule = cosineSchedule({
    peakLr: 4e-4,
    minLr: 4e-5,
    warmupSteps: 500,
    decaySteps: 9155,
  });

  const losses = [];
  const gradNorms = [];
  let enqueued = 0;
  /**
   * Runs steps as the trainer does, two enqueued at a time. @returns milliseconds of each, from the
   * end of the previous one
   */
  async function run(count, between = () => {}) {
    const times = [];
    let last = performance.now();
    let running = null;
    for (let step = 0; step <= count; step++) {
      const next =
        step < count
          ? await trainStep({
              model,
              optimizer,
              nextBatch: () => loader.next(),
              accumulation,
              lr: schedule(enqueued++),
              clip: 1,
            })
          : null;
      if (next) between();
      if (running) {
        const { loss, decision, at } = await running.figures;
        losses.push(loss);
        gradNorms.push(decision[4]);
        times.push(at - last);
        last = at;
        say({ step: losses.length });
      }
      running = next;
    }
    return times;
  }

  /**
   * Records a timeline. It begins one step early, because the weights that a step sends are waited
   * for in the next step.
   */
  async function traced(cluster) {
    const recording = cluster.beginTimeline();
    await run(options.tracedSteps + 1, recording.betweenSteps);
    return await cluster.endTimeline();
  }

  await run(warmup);
  resetPeakMemory(device);
  const sentBefore = cluster?.sentBytes ?? 0;
  const times = await run(steps);
  const sentBytes = ((cluster?.sentBytes ?? 0) - sentBefore) / steps;
  const { peakBytes } = memory(device);
  const timeline = cluster && options.tracedSteps > 0 ? await traced(cluster) : null;

  /**
   * Hash of the weights, in f32 if the optimizer keeps them so; every rank has all of them in the
   * end.
   */
  const hash = createHash("sha256");
  for (const group of model.store.groups) {
    await scope(async () => {
      const whole = model.store.whole(group, group.master ?? group.ownedWeights);
      hash.update(new Uint8Array(await whole.toBytes()));
    });
  }
  await synchronize(device);
  const exposed = timeline && summariseTimeline(timeline);
  say({
    rank: world?.rank ?? 0,
    backend: cluster?.backend ?? null,
    losses,
    gradNorms,
    times,
    peakBytes,
    sentBytes,
    weights: hash.digest("hex"),
    ...(exposed && {
      traced: {
        stepMs: median(exposed.map(({ stepMs }) => stepMs)),
        communicationMs: median(exposed.map(({ communicationMs }) => communicationMs)),
        exposedMs: median(exposed.map(({ exposedMs }) => exposedMs)),
      },
      timeline,
    }),
  });
  await loader.close();
  await tokens.close();
  await cluster?.close();
  optimizer.dispose();
  model.dispose();
}

main().catch((error) => {
  console.error(error.message);
  process.exit(error.exitCode ?? 1);
});
