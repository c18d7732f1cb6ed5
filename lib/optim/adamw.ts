import {
  argumentError,
  checkChoice,
  checkDType,
  checkInstance,
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
import type { Parameter } from "../nn/parameter.js";
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
  /** First element of its second moments. */
  second: number;
}

/** First and second moments of a group's owned part. */
export interface Moments {
  readonly m: Tensor;
  /** Those of the parameters that AdamW updates, one after the other; one 0 if there are none. */
  readonly v: Tensor;
}

/** Decisions of an optimizer's step, for the updates of its groups. */
export interface GroupStep {
  readonly lr: number;
  /** The guard's decision, f32 (8). */
  readonly decision: Tensor;
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
  /** Parameters that a derived optimizer updates by other rules. */
  readonly #others: ReadonlySet<Parameter>;

  /**
   * @param others parameters that a derived class updates; they have no second moments
   * @throws ArgumentError for options that do not fit, and for bf16 weights without an f32 master
   *   copy
   */
  constructor(
    store: ParameterStore,
    options: AdamWOptions = {},
    others: ReadonlySet<Parameter> = new Set(),
  ) {
    if (!(store instanceof ParameterStore)) {
      throw argumentError("AdamW", "a ParameterStore (a model's is model.store)", "store", store);
    }
    checkOptions("AdamW", options, ["beta1", "beta2", "eps", "weightDecay", "decay", "guard"]);
    checkInstance("AdamW", "others", others, Set, "a Set of Parameters");
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
    this.#others = others;
    this.options = { beta1, beta2, eps, weightDecay, decay, guard };
    const { device } = store;
    this.guardState = outsideScopes(() => zeros([guardStateSize(guard.window)], { device }));
    this.#moments = outsideScopes(
      () =>
        new Map(
          store.groups.map((group) => {
            void group.gradients; // binds the parameters' gradients to the flat buffer before the first backward
            const { size } = group.owned;
            const second = this.#hasOthers(group)
              ? this.#pieces(group).reduce((sum, piece) => sum + piece.size, 0) || 1
              : size;
            return [group, { m: zeros([size], { device }), v: zeros([second], { device }) }];
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
    const { beta1, beta2, guard } = this.options;
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
      if (group.entries.some(({ parameter }) => parameter.trainable)) group.changed(op);
      this.#updateRuns(group, { lr, decision });
      this.updateOthers(group, { lr, decision });
      parallel?.weightsChanged(group);
    }
    this.store.zeroGrad();
    return { gradNorm: decision.view([1], 4), decision };
  }

  /** Updates a group's parameters by AdamW's rule, in its owned part. */
  #updateRuns(group: ParameterGroup, { lr, decision }: GroupStep): void {
    const { beta1, beta2, eps } = this.options;
    const { m, v } = this.#moments.get(group) as Moments;
    for (const { offset, size, weightDecay, second } of this.#runs(group)) {
      const part = (buffer: Tensor, from = offset): Tensor => buffer.view([size], from);
      const weights = part(group.ownedWeights);
      const master = group.master ? part(group.master) : null;
      const gradients = part(group.ownedGradients);
      const [first, squares] = [part(m), part(v, second)];
      native.adamw(
        weights.native,
        master?.native ?? null,
        gradients.native,
        first.native,
        squares.native,
        decision.native,
        lr,
        beta1,
        beta2,
        eps,
        weightDecay,
      );
      for (const view of [weights, master, gradients, first, squares]) view?.dispose();
    }
  }

  /** Updates the parameters that AdamW leaves out; a derived class overrides it. */
  protected updateOthers(_group: ParameterGroup, _step: GroupStep): void {}

  /** Whether a parameter has second moments. */
  hasSecond(parameter: Parameter): boolean {
    return !this.#others.has(parameter);
  }

  /**
   * The second moments of a group in the layout of its owned part, with zeros for parameters that
   * have none. The result belongs to the current scope, or to the optimizer.
   */
  ownedSecond(group: ParameterGroup): Tensor {
    const { v } = this.moments(group);
    if (!this.#hasOthers(group)) return v;
    const whole = zeros([group.owned.size], { device: this.store.device });
    for (const { offset, size, second } of this.#pieces(group)) {
      const [from, to] = [v.view([size], second), whole.view([size], offset)];
      native.cast(from.native, to.native);
      for (const view of [from, to]) view.dispose();
    }
    return whole;
  }

  /**
   * Writes second moments of a parameter, as far as this process owns them.
   * @param offset first element of `values` within the group
   */
  writeSecond(group: ParameterGroup, offset: number, values: Tensor): void {
    const { v } = this.moments(group);
    if (!this.#hasOthers(group)) {
      group.writeOwned(v, offset, values);
      return;
    }
    for (const piece of this.#pieces(group)) {
      const range = { offset: piece.offset + group.owned.offset, size: piece.size };
      const mine = overlap({ offset, size: values.size }, range);
      if (!mine) continue;
      const from = values.view([mine.size], mine.offset - offset);
      const to = v.view([mine.size], piece.second + mine.offset - range.offset);
      native.cast(from.native, to.native);
      for (const view of [from, to]) view.dispose();
    }
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

  #hasOthers(group: ParameterGroup): boolean {
    return group.entries.some(({ parameter }) => this.#others.has(parameter));
  }

  /** The owned ranges of the parameters that AdamW updates, with the places of their second moments. */
  #pieces(group: ParameterGroup): (Run & { parameter: Parameter })[] {
    const packed = this.#hasOthers(group);
    const pieces: (Run & { parameter: Parameter })[] = [];
    const ends = [...group.entries.slice(1).map((entry) => entry.offset), group.size];
    let second = 0;
    group.entries.forEach(({ parameter, offset: start }, index) => {
      if (this.#others.has(parameter)) return;
      const size = (ends[index] as number) - start;
      const owned = overlap({ offset: start, size }, group.owned);
      if (!owned) return;
      const offset = owned.offset - group.owned.offset;
      const decays = this.options.decay === "all" || parameter.shape.length > 1;
      const weightDecay = decays ? this.options.weightDecay : 0;
      pieces.push({
        parameter,
        offset,
        size: owned.size,
        weightDecay,
        second: packed ? second : offset,
      });
      second += owned.size;
    });
    return pieces;
  }

  /**
   * Splits a group's owned part into pieces with equal update rules. Frozen parameters are left
   * out, and the decay may differ by rank.
   */
  #runs(group: ParameterGroup): Run[] {
    const runs: Run[] = [];
    for (const { parameter, ...piece } of this.#pieces(group)) {
      if (!parameter.trainable) continue;
      const last = runs.at(-1);
      const follows =
        last?.weightDecay === piece.weightDecay &&
        last.offset + last.size === piece.offset &&
        last.second + last.size === piece.second;
      if (last && follows) last.size += piece.size;
      else runs.push(piece);
    }
    return runs;
  }
}
