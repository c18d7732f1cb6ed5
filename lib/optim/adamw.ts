import {
  argumentError,
  checkChoice,
  checkDType,
  checkNumber,
  checkObject,
  checkOptions,
  checkSameDevice,
  describe,
  shapeText,
} from "../core/check.js";
import { zeros } from "../core/create.js";
import { ArgumentError, ShapeError } from "../core/errors.js";
import { native } from "../core/native.js";
import { outsideScopes } from "../core/scope.js";
import { empty, type Tensor } from "../core/tensor.js";
import { overlap, type ParameterGroup } from "../nn/group.js";
import { ParameterStore } from "../nn/store.js";
import {
  checkGuard,
  decisionSize,
  finiteGuard,
  type GuardOptions,
  guardStateSize,
} from "./guard.js";
import type { Optimizer, StepResult } from "./optimizer.js";

/** Settings of AdamW, with the defaults of TinyLlama. */
export interface AdamWOptions {
  /** Decay of the first moment. Default: 0.9. */
  beta1?: number;
  /** Decay of the second moment. Default: 0.95. */
  beta2?: number;
  /** Constant added to the root of the second moment. Default: 1e-8. */
  eps?: number;
  /** Decoupled weight decay. Default: 0.1. */
  weightDecay?: number;
  /**
   * `all` decays every parameter like TinyLlama; `matrices` excludes parameters with one axis.
   * Default: "all".
   */
  decay?: "all" | "matrices";
  /** Rules for skipping steps. Default: only steps with non-finite values are skipped. */
  guard?: GuardOptions;
}

/** A contiguous piece of a group's owned part that one launch updates. */
interface Run {
  offset: number;
  size: number;
  weightDecay: number;
}

/** First and second moments of a group's owned part. */
export interface Moments {
  readonly m: Tensor;
  readonly v: Tensor;
}

/**
 * AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) with bias correction over a store's flat
 * groups, with clipping by the global gradient norm and the step guard. The norm, the clip factor
 * and the decision to skip stay on the device, so nothing waits for it. A skipped step changes no
 * byte of weights and moments.
 */
export class AdamW implements Optimizer {
  readonly store: ParameterStore;
  readonly options: Readonly<Required<AdamWOptions>>;
  /** Counters and windows of the guard, f32; part of a checkpoint. */
  readonly guardState: Tensor;
  readonly #moments: ReadonlyMap<ParameterGroup, Moments>;

  /**
   * @throws ArgumentError for options that do not fit, and for bf16 weights without an f32 master
   *   copy
   */
  constructor(store: ParameterStore, options: AdamWOptions = {}) {
    if (!(store instanceof ParameterStore)) {
      throw argumentError("AdamW", "a ParameterStore (a model's is model.store)", "store", store);
    }
    checkOptions("AdamW", options, ["beta1", "beta2", "eps", "weightDecay", "decay", "guard"]);
    const { beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weightDecay = 0.1, decay = "all" } = options;
    const guard = options.guard ?? finiteGuard;
    const inRange = (name: string, value: number, low: number, high: number): void => {
      if (!(typeof value === "number" && value >= low && value < high)) {
        throw new ArgumentError(
          `[AdamW] expected a number from ${low} to below ${high} for ${name} but received ${describe(value)}`,
        );
      }
    };
    inRange("beta1", beta1, 0, 1);
    inRange("beta2", beta2, 0, 1);
    inRange("eps", eps, 0, 1);
    inRange("weightDecay", weightDecay, 0, 1e6);
    checkChoice("AdamW", "decay", decay, ["all", "matrices"]);
    checkGuard("AdamW", guard);
    if (store.dtype === "bf16" && store.groups.some(({ master }) => master === null)) {
      throw new ArgumentError(
        "[AdamW] these weights are bf16 without f32 ones beside them, so most updates would be rounded away: create or " +
          "load the model with training: true",
      );
    }
    this.store = store;
    this.options = { beta1, beta2, eps, weightDecay, decay, guard };
    const { device } = store;
    this.guardState = outsideScopes(() => zeros([guardStateSize(guard.window)], { device }));
    this.#moments = outsideScopes(
      () =>
        new Map(
          store.groups.map((group) => {
            void group.gradients; // binds the parameters' gradients to the flat buffer before the first backward
            const { size } = group.owned;
            return [group, { m: zeros([size], { device }), v: zeros([size], { device }) }];
          }),
        ),
    );
  }

  /**
   * Updates the weights once from the accumulated gradients, and then discards the gradients.
   * @param options.clip largest global gradient norm; 0 or absent: no clipping
   * @param options.loss an f32 scalar for the guard; if absent, the guard watches only the
   *   gradients
   */
  step(options: { lr: number; clip?: number; loss?: Tensor }): StepResult {
    const op = "AdamW.step";
    checkObject(op, "options", options);
    checkOptions(op, options, ["lr", "clip", "loss"]);
    const { lr, clip = 0, loss } = options;
    checkNumber(op, "lr", lr, { min: 0 });
    checkNumber(op, "clip", clip, { min: 0 });
    if (loss !== undefined) {
      checkDType(op, "loss", loss, "f32");
      if (loss.size !== 1) {
        throw new ShapeError(
          `[${op}] expected one element for loss but received shape ${shapeText(loss.shape)}`,
        );
      }
      checkSameDevice(op, this.guardState, loss);
    }
    this.#checkAlive(op);
    const { beta1, beta2, eps, guard } = this.options;
    const { groups, device, parallel } = this.store;
    parallel?.finishGradients();
    const squares = empty([groups.length], { device }, op);
    groups.forEach((group, index) => {
      if (!parallel) group.completeGradients();
      const slot = squares.view([1], index);
      native.sumOfSquares(group.ownedGradients.native, slot.native);
      slot.dispose();
    });
    parallel?.sumSquares(squares);
    const decision = empty([decisionSize], { device }, op);
    const watched = loss ?? zeros([], { device });
    native.stepGuard(
      watched.native,
      squares.native,
      this.guardState.native,
      decision.native,
      clip,
      beta1,
      beta2,
      loss ? guard.zLoss : 0,
      guard.zGradNorm,
      guard.minimumHistory,
    );
    if (watched !== loss) watched.dispose();
    squares.dispose();
    for (const group of groups) {
      const { m, v } = this.#moments.get(group) as Moments;
      if (group.entries.some(({ parameter }) => parameter.trainable)) group.changed(op);
      for (const { offset, size, weightDecay } of this.#runs(group)) {
        const part = (buffer: Tensor): Tensor => buffer.view([size], offset);
        const views = [group.ownedWeights, group.ownedGradients, m, v].map(part) as [
          Tensor,
          Tensor,
          Tensor,
          Tensor,
        ];
        const master = group.master ? part(group.master) : null;
        const [weights, gradients, first, second] = views;
        native.adamw(
          weights.native,
          master?.native ?? null,
          gradients.native,
          first.native,
          second.native,
          decision.native,
          lr,
          beta1,
          beta2,
          eps,
          weightDecay,
        );
        for (const view of views) view.dispose();
        master?.dispose();
      }
      parallel?.weightsChanged(group);
    }
    this.store.zeroGrad();
    return { gradNorm: decision.view([1], 4), decision };
  }

  /** Checked before anything changes, because half a step could not be undone. */
  #checkAlive(op: string): void {
    this.guardState.checkAlive(op);
    for (const [group, { m, v }] of this.#moments) {
      for (const part of [group.weights, group.ownedWeights, group.master, m, v]) {
        part?.checkAlive(op);
      }
      for (const { parameter } of group.entries) parameter.leaf.checkAlive(op);
    }
  }

  /** The moments of a group's owned part. @throws ArgumentError for a group of another store */
  moments(group: ParameterGroup): Moments {
    const moments = this.#moments.get(group);
    if (!moments) throw argumentError("AdamW.moments", "a group of its store", "group", group);
    return moments;
  }

  dispose(): void {
    this.guardState.dispose();
    for (const { m, v } of this.#moments.values()) {
      m.dispose();
      v.dispose();
    }
  }

  /**
   * Splits a group's owned part into pieces with equal update rules. Frozen parameters are left
   * out, and the decay may differ by rank.
   */
  #runs(group: ParameterGroup): Run[] {
    const runs: Run[] = [];
    const ends = [...group.entries.slice(1).map((entry) => entry.offset), group.size];
    group.entries.forEach(({ parameter, offset: start }, index) => {
      if (!parameter.trainable) return;
      const size = (ends[index] as number) - start;
      const owned = overlap({ offset: start, size }, group.owned);
      if (!owned) return;
      const offset = owned.offset - group.owned.offset;
      const decays = this.options.decay === "all" || parameter.shape.length > 1;
      const weightDecay = decays ? this.options.weightDecay : 0;
      const last = runs.at(-1);
      if (last && last.weightDecay === weightDecay && last.offset + last.size === offset) {
        last.size += owned.size;
      } else {
        runs.push({ offset, size: owned.size, weightDecay });
      }
    });
    return runs;
  }
}
