import {
  checkFunction,
  checkInstance,
  checkInteger,
  checkNumber,
  checkObject,
} from "../core/check.js";
import { full, tensor, zeros } from "../core/create.js";
import { faultPoint } from "../core/faults.js";
import { native } from "../core/native.js";
import { ready } from "../core/runtime.js";
import { scope } from "../core/scope.js";
import type { Tensor } from "../core/tensor.js";
import { Llama } from "../model/llama.js";
import { AdamW } from "../optim/adamw.js";
import { type DocumentChoice, documentOptions } from "./documents.js";
import { StepClock } from "./step-clock.js";

/** Token ids of a micro-batch, (windows, time) each; targets are shifted by one. */
export interface MicroBatch {
  inputs: Int32Array;
  targets: Int32Array;
  /** Where the documents of the windows start; see `documentStarts()`. */
  documentStarts?: Int32Array;
  /** Windows. */
  count: number;
}

export interface StepOptions {
  model: Llama;
  optimizer: AdamW;
  nextBatch: () => Promise<MicroBatch>;
  /** How the documents of a window are kept apart; where they are, micro-batches have `documentStarts`. Default: not. */
  documents?: DocumentChoice;
  /** Micro-batches whose gradients add up. */
  accumulation: number;
  lr: number;
  clip: number;
  /**
   * Called before the step with one of its passes, forward and backward over the first micro-batch, to run as often as it
   * likes; gradients are forgotten afterwards.
   */
  verify?: (pass: () => void) => Promise<void>;
  /** Whether this process asks all of a run to stop after this step (false). */
  stop?: boolean;
}

/** A step that has been enqueued. */
export interface RunningStep {
  lr: number;
  /** Milliseconds spent waiting for data. */
  dataWaitMs: number;
  /** What the host did for it, and when. */
  clock: StepClock;
  /**
   * Mean loss, the guard's decision, and whether a process asked to stop, once the device has got there; `at`: when that was,
   * by performance.now(), whenever JS comes to read it; `reached`: when it had done each micro-batch, the last with the whole
   * step.
   */
  figures: Promise<{
    loss: number;
    decision: ArrayLike<number>;
    stop: boolean;
    at: number;
    reached: readonly number[];
  }>;
}

/**
 * Enqueues one training step: for each micro-batch forward and backward, then clipping, guard and AdamW; with several
 * processes, over the micro-batches of all of them. Waits for data, and for a device that is far behind; the event loop gets
 * its turn before each micro-batch. Everything made is freed when the step's scope ends, as far as the device has no more
 * use for it.
 */
export async function trainStep(options: StepOptions): Promise<RunningStep> {
  const op = "trainStep";
  checkObject(op, "options", options);
  const { model, optimizer, nextBatch, documents, accumulation, lr, clip } = options;
  checkInstance(op, "model", model, Llama, "a Llama");
  checkInstance(op, "optimizer", optimizer, AdamW, "an AdamW");
  checkFunction(op, "nextBatch", nextBatch);
  checkInteger(op, "accumulation", accumulation, { min: 1, max: 2 ** 31 });
  checkNumber(op, "lr", lr, { min: 0 });
  checkNumber(op, "clip", clip, { min: 0 });
  const { parallel } = model.store;
  const clock = new StepClock(model.device);
  const figures = await scope(async () => {
    const scale = 1 / accumulation;
    const shared = parallel && tensor([0, options.stop ? 1 : 0], { device: model.device });
    const meanLoss = shared ? shared.view([]) : zeros([], { device: model.device });
    const share = full([1], scale, { device: model.device });
    // A scope for each micro-batch, so that its activations are gone before the next one's are made.
    const pass = (batch: MicroBatch, last: boolean, sum: Tensor): void =>
      scope(() => {
        checkObject(op, "a micro-batch of nextBatch", batch);
        const { inputs, targets, documentStarts, count } = batch;
        parallel?.beginMicroBatch(last);
        const shape = [count, inputs.length / count];
        const ids = (data: Int32Array): Tensor =>
          tensor(data, { shape, dtype: "i32", device: model.device });
        const loss = clock.part("forward", () =>
          model.loss(
            ids(inputs),
            ids(targets),
            documentOptions(documents, documentStarts && ids(documentStarts)),
          ),
        );
        if (faultPoint("loss") === "nan") native.fill(loss.native, Number.NaN);
        clock.part("backward", () => loss.backward({ scale }));
        native.accumulateScaled(loss.native, share.native, sum.native);
      });
    for (let micro = 0; micro < accumulation; micro++) {
      await ready(model.device);
      const batch = await clock.data(nextBatch);
      const { verify } = options;
      if (micro === 0 && verify) {
        const aside = zeros([], { device: model.device });
        await clock.checks(() => verify(() => pass(batch, false, aside)));
      }
      const last = micro === accumulation - 1;
      clock.pass(() => pass(batch, last, meanLoss), last);
    }
    if (shared) parallel.average(shared);
    const { decision } = clock.part("optimizer", () =>
      optimizer.step({ lr, clip, loss: meanLoss }),
    );
    if (faultPoint("updated") === "nan") {
      for (const { ownedWeights } of model.store.groups)
        native.fill(ownedWeights.native, Number.NaN);
    }
    const values = Promise.all([(shared ?? meanLoss).toArray(), decision.toArray(), clock.end()]);
    return { pending: values };
  });
  const read = figures.pending.then(([[loss, stop = 0], decision, reached]) => ({
    loss: loss as number,
    decision,
    stop: stop > 0,
    at: reached.at(-1) as number,
    reached,
  }));
  // Waited for later; a failure until then must not count as unhandled.
  read.catch(() => {});
  return { lr, dataWaitMs: clock.dataWaitMs, clock, figures: read };
}
