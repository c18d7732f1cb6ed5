import {
  checkBoolean,
  checkFunction,
  checkInstance,
  checkInteger,
  checkNumber,
  checkObject,
  checkOptions,
} from "../core/check.js";
import { full, tensor, zeros } from "../core/create.js";
import type { Device } from "../core/device.js";
import { ArgumentError } from "../core/errors.js";
import { faultPoint } from "../core/faults.js";
import { native } from "../core/native.js";
import { ready } from "../core/runtime.js";
import { scope } from "../core/scope.js";
import type { Tensor } from "../core/tensor.js";
import { batchTensors, checkHostBatch, type HostBatch } from "../model/batch.js";
import { Fp8Monitor } from "../model/fp8-monitor.js";
import { LanguageModel } from "../model/language-model.js";
import type { ParallelStrategy } from "../nn/parallel.js";
import { div } from "../ops/index.js";
import { checkOptimizer, type Optimizer } from "../optim/optimizer.js";
import { checkObjective, namedFigures, nextTokens, type Objective } from "./objective.js";
import { StepClock } from "./step-clock.js";

/** Everything that one optimizer step needs. */
export interface StepOptions {
  model: LanguageModel;
  optimizer: Optimizer;
  /** The next micro-batch; called `accumulation` times before the first pass. */
  nextBatch: () => Promise<HostBatch>;
  /** What the step minimises. Default: `nextTokens`, the mean loss over targets. */
  objective?: Objective;
  /**
   * Whether targets may be -100 when several processes train together, which must then agree on the
   * number of targets that are not ignored. Batches of different sizes on the processes need it too.
   * A process that trains alone always allows -100. Default: false.
   */
  masked?: boolean;
  /** Number of micro-batches whose gradients are summed. */
  accumulation: number;
  lr: number;
  clip: number;
  /**
   * Called before the step with a function that runs forward and backward over the first
   * micro-batch. The callback may run it any number of times; its gradients are discarded
   * afterwards.
   */
  verify?: (pass: () => void) => Promise<void>;
  /** Whether this process asks the whole run to stop after this step. Default: false. */
  stop?: boolean;
  /** Watches the first micro-batch's tensors in fp8. Default: null, not at all. */
  watch?: Fp8Monitor | null;
}

/** A step that has been enqueued. */
export interface RunningStep {
  lr: number;
  /** Rows of this process's micro-batches; `tokens` counts their tokens. */
  windows: number;
  tokens: number;
  /** Milliseconds spent waiting for data. */
  dataWaitMs: number;
  /** The host's work on the step, with its times. */
  clock: StepClock;
  /**
   * Results of the step, available when the device has computed them: mean loss, the objective's
   * figures by name, the guard's decision, and whether a process asked to stop. `at` is the time at which the device finished,
   * by performance.now(), even if JS reads it later. `reached` has the time at which each
   * micro-batch finished; the last one includes the rest of the step.
   */
  figures: Promise<{
    loss: number;
    measured: Record<string, number>;
    decision: ArrayLike<number>;
    stop: boolean;
    /**
     * Figures of the tensors in fp8 that were watched, see Fp8Monitor, as means over the processes;
     * null if none were.
     */
    fp8: ArrayLike<number> | null;
    at: number;
    reached: readonly number[];
  }>;
}

/**
 * Enqueues one training step: forward and backward for each micro-batch, then clipping, guard and
 * optimizer. The loss is the sum over all targets that are not ignored, divided by their number,
 * across all micro-batches and processes; the gradients are scaled in the same way. Another
 * objective may have other units than targets, such as pairs of answers. For this reason all batches of the step are read before the first pass. The call waits for data, and for a device
 * that is far behind. The event loop gets a turn before each micro-batch. Tensors of the step are
 * freed when its scope has ended and the device no longer needs them.
 * @throws ArgumentError for invalid arguments, and for targets of -100 with several processes
 *   unless `masked` is true
 */
export async function trainStep(options: StepOptions): Promise<RunningStep> {
  const op = "trainStep";
  checkObject(op, "options", options);
  checkOptions(op, options, names);
  const { model, optimizer, nextBatch, accumulation, lr, clip, masked = false } = options;
  const { objective = nextTokens } = options;
  checkInstance(op, "model", model, LanguageModel, "a language model");
  checkOptimizer(op, optimizer, model.store);
  checkFunction(op, "nextBatch", nextBatch);
  checkInteger(op, "accumulation", accumulation, { min: 1, max: 2 ** 31 });
  checkNumber(op, "lr", lr, { min: 0 });
  checkNumber(op, "clip", clip, { min: 0 });
  checkObjective(op, objective);
  checkBoolean(op, "masked", masked);
  checkBoolean(op, "stop", options.stop ?? false);
  if (options.verify !== undefined) checkFunction(op, "verify", options.verify);
  const { watch = null } = options;
  if (watch !== null) checkInstance(op, "watch", watch, Fp8Monitor, "a monitor of fp8");
  const { device } = model;
  const { parallel } = model.store;
  const clock = new StepClock(device);
  const figures = await scope(async () => {
    const shared = parallel && tensor([0, options.stop ? 1 : 0], { device });
    const meanLoss = shared ? shared.view([]) : zeros([], { device });
    await ready(device);
    const batches = await clock.data(async () => {
      const read: HostBatch[] = [];
      while (read.length < accumulation) read.push(checkHostBatch(op, await nextBatch()));
      return read;
    });
    checkRandom(op, model, batches);
    const counts = batches.map((batch) => objective.count(batch));
    const together = masked || objective !== nextTokens;
    if (parallel && !together) refuseIgnored(batches, counts);
    const shares = sharesOf(counts, { together, parallel, device });
    shares.markEmpty(meanLoss);
    const { length } = objective.figures;
    const meanFigures = length > 0 ? zeros([length], { device }) : null;
    // Each micro-batch has its own scope, which frees its activations before the next ones are
    // made.
    const pass = (micro: number, last: boolean, sum: Tensor, sums: Tensor | null): void =>
      scope(() => {
        parallel?.beginMicroBatch(last);
        const host = batches[micro] as HostBatch;
        const batch = batchTensors(host, device);
        model.inTraining(host.firstRow ?? 0, () => {
          const { loss, figures } = clock.part("forward", () =>
            objective.measure(model, batch, host),
          );
          if (faultPoint("loss") === "nan") native.fill(loss.native, Number.NaN);
          const { count, scale, share } = shares.of(micro);
          clock.part("backward", () =>
            loss.backward(scale === null ? { gradient: share.view([]) } : { scale }),
          );
          // The mean over no targets is NaN; its gradients are 0.
          if (count === 0) return;
          native.accumulateScaled(loss.native, share.native, sum.native);
          if (sums && figures) native.accumulateScaled(figures.native, share.native, sums.native);
        });
      });
    let watched: Tensor | null = null;
    for (let micro = 0; micro < accumulation; micro++) {
      if (micro > 0) await ready(device);
      const { verify } = options;
      if (micro === 0 && verify) {
        const aside = zeros([], { device });
        await clock.checks(() => verify(() => pass(micro, false, aside, null)));
        model.store.zeroGrad();
      }
      const last = micro === accumulation - 1;
      if (micro === 0) watch?.start(device);
      clock.pass(() => pass(micro, last, meanLoss, meanFigures), last);
      if (micro === 0 && watch) watched = watch.stop();
    }
    if (watched) parallel?.average(watched);
    if (shared) parallel.average(shared);
    if (parallel && meanFigures) parallel.average(meanFigures);
    const { decision } = clock.part("optimizer", () =>
      optimizer.step({ lr, clip, loss: meanLoss }),
    );
    if (faultPoint("updated") === "nan") {
      for (const { ownedWeights } of model.store.groups)
        native.fill(ownedWeights.native, Number.NaN);
    }
    const values = Promise.all([
      (shared ?? meanLoss).toArray(),
      meanFigures?.toArray() ?? [],
      decision.toArray(),
      clock.end(),
      watched?.toArray() ?? null,
    ]);
    const windows = batches.reduce((sum, { count }) => sum + count, 0);
    const tokens = batches.reduce((sum, { inputs }) => sum + inputs.length, 0);
    return { pending: values, windows, tokens };
  }).catch((error) => {
    // A caller may go on with another batch, and no gradients of this step may be in that one.
    model.store.zeroGrad();
    throw error;
  });
  const { windows, tokens } = figures;
  const read = figures.pending.then(([[loss, stop = 0], measured, decision, reached, fp8]) => ({
    loss: loss as number,
    measured: namedFigures(objective, measured),
    decision,
    stop: stop > 0,
    fp8,
    at: reached.at(-1) as number,
    reached,
  }));
  // The result is awaited later. Until then a failure must not count as unhandled.
  read.catch(() => {});
  return { lr, windows, tokens, dataWaitMs: clock.dataWaitMs, clock, figures: read };
}

const names = [
  "model",
  "optimizer",
  "nextBatch",
  "objective",
  "masked",
  "accumulation",
  "lr",
  "clip",
  "verify",
  "stop",
  "watch",
] as const satisfies (keyof StepOptions)[];

/** Refuses targets of -100 that the processes have not agreed to count together. */
function refuseIgnored(batches: readonly HostBatch[], counts: readonly number[]): void {
  const partial = batches.findIndex(({ targets }, micro) => targets.length !== counts[micro]);
  if (partial < 0) return;
  throw new ArgumentError(
    `[trainStep] targets of -100 in micro-batch ${partial}: with several processes say masked: true, so that all of ` +
      "them count the targets together",
  );
}

/** Refuses batches that give no place to a model whose random numbers depend on it. */
function checkRandom(op: string, model: LanguageModel, batches: readonly HostBatch[]): void {
  if (!model.isRandom || batches.every(({ firstRow }) => firstRow !== undefined)) return;
  throw new ArgumentError(
    `[${op}] expected firstRow in each batch, the place of its first row in the run: it seeds this model's dropout`,
  );
}

interface TargetShares {
  /** Makes a mean, so far 0, NaN if no process has a target that is not ignored. */
  markEmpty(mean: Tensor): void;
  /**
   * Weight of a micro-batch's mean in the step's mean: `share` as f32 (1), and `scale` as a number,
   * null if only the device knows it. `count` is the micro-batch's number of targets that are not
   * ignored.
   */
  of(micro: number): { count: number; scale: number | null; share: Tensor };
}

/**
 * The weight of each micro-batch's mean in the mean over all targets; tensors belong to the current
 * scope.
 */
function sharesOf(
  counts: readonly number[],
  to: { together: boolean; parallel: ParallelStrategy | null; device: Device },
): TargetShares {
  const { together, parallel, device } = to;
  const targets = counts.reduce((sum, count) => sum + count, 0);
  if (!parallel || !together) {
    const scales = counts.map((count) => (targets === 0 ? 0 : count / targets));
    const shares = scales.map((scale) => full([1], scale, { device }));
    return {
      markEmpty: (mean) => {
        if (targets === 0) native.fill(mean.native, Number.NaN);
      },
      of: (micro) => ({
        count: counts[micro] as number,
        scale: scales[micro] as number,
        share: shares[micro] as Tensor,
      }),
    };
  }
  // The sum stays on the device, because reading it on the host would wait for the previous step.
  const average = tensor([targets], { device });
  parallel.average(average);
  const shares = counts.map((count) => div(tensor([count], { device }), average));
  return {
    // Other processes may have targets where this one has none. Its shares are then 0, otherwise
    // 0 / 0.
    markEmpty: (mean) => {
      if (targets > 0) return;
      const share = (shares[0] as Tensor).view([]);
      native.accumulateScaled(share.native, full([1], 1, { device }).native, mean.native);
    },
    of: (micro) => ({
      count: counts[micro] as number,
      scale: null,
      share: shares[micro] as Tensor,
    }),
  };
}
