import { argumentError, checkArray, checkInstance, checkOptions, describe } from "../core/check.js";
import { zeros } from "../core/create.js";
import { ArgumentError } from "../core/errors.js";
import { native } from "../core/native.js";
import { scope } from "../core/scope.js";
import type { Tensor } from "../core/tensor.js";
import { overlap, type ParameterGroup, type PlacedParameter, type Range } from "../nn/group.js";
import { Parameter } from "../nn/parameter.js";
import { ParameterStore } from "../nn/store.js";
import { AdamW, type AdamWOptions, type GroupStep } from "./adamw.js";
import { orthogonal } from "./orthogonal.js";

/** Settings of Muon, and of AdamW for the parameters that Muon leaves to it. */
export interface MuonOptions extends AdamWOptions {
  /** Decay of a matrix's momentum. Default: 0.95. */
  momentum?: number;
  /** Matrices that AdamW updates all the same, such as the output head. Default: none. */
  exclude?: readonly Parameter[];
}

/** A matrix within a group's buffers. */
interface Matrix extends Range {
  readonly rows: number;
  readonly columns: number;
}

/** Rows and columns of each matrix that a parameter holds; empty for one that Muon leaves to AdamW. */
export function matricesOf(parameter: Parameter): (readonly [rows: number, columns: number])[] {
  const columns = parameter.shape[1] as number;
  return parameter.matrices?.map((rows) => [rows, columns] as const) ?? [];
}

/**
 * Muon (Jordan et al. 2024) for the matrices of a model's layers, AdamW for all other parameters.
 * The update of a matrix is its Nesterov momentum made orthogonal, times 0.2 · sqrt(its longer
 * side), which gives it the size of an AdamW update, so that both rules share one learning rate and
 * one weight decay (Liu et al. 2025, arXiv 2502.16982). The iteration computes in the weights'
 * dtype. Guard, clipping and skipped steps are AdamW's.
 *
 * Where processes divide the optimizer's state, each keeps the momentum of its part. It gathers the
 * groups' momenta one after the other, and computes the matrices that reach into its part.
 *
 *     const optimizer = new Muon(model.store, { exclude: [model.headWeight] });
 */
export class Muon extends AdamW {
  /** Decay of a matrix's momentum. */
  readonly momentum: number;

  /**
   * @throws ArgumentError for options that do not fit, for a model without such matrices, and for
   *   bf16 weights without an f32 master copy
   */
  constructor(store: ParameterStore, options: MuonOptions = {}) {
    const op = "Muon";
    if (!(store instanceof ParameterStore)) {
      throw argumentError(op, "a ParameterStore (a model's is model.store)", "store", store);
    }
    checkOptions(op, options, [
      ...["beta1", "beta2", "eps", "weightDecay", "decay", "guard"],
      ...["momentum", "exclude"],
    ]);
    const { momentum = 0.95, exclude = [], ...adamw } = options;
    if (!(typeof momentum === "number" && momentum >= 0 && momentum < 1)) {
      throw new ArgumentError(
        `[${op}] expected a number from 0 to below 1 for momentum but received ${describe(momentum)}`,
      );
    }
    checkArray(op, "exclude", exclude);
    for (const parameter of exclude) {
      checkInstance(op, "a parameter of exclude", parameter, Parameter, "a Parameter");
    }
    const matrices = new Set<Parameter>();
    for (const { parameter } of store.entries()) {
      if (parameter.matrices && !exclude.includes(parameter)) matrices.add(parameter);
    }
    if (matrices.size === 0) {
      throw new ArgumentError(
        `[${op}] this model has no matrices: they are weights of Linear layers, or Parameters with \`matrices\``,
      );
    }
    super(store, adamw, matrices);
    this.momentum = momentum;
  }

  protected override updateOthers(group: ParameterGroup, step: GroupStep): void {
    const entries = group.entries.filter(
      ({ parameter }) => !this.hasSecond(parameter) && parameter.trainable,
    );
    if (entries.length === 0) return;
    scope(() => {
      const direction = this.#directionOf(group, entries, step);
      const whole = this.store.whole(group, direction);
      for (const matrix of entries.flatMap(placesOf)) {
        const mine = overlap(matrix, group.owned);
        if (mine) this.#update(group, matrix, mine, whole, step);
      }
    });
  }

  /** Adds the gradients to the momentum of the owned part, and returns its Nesterov direction. */
  #directionOf(
    group: ParameterGroup,
    entries: readonly PlacedParameter[],
    { decision }: GroupStep,
  ): Tensor {
    const { device, dtype } = this.store;
    const direction = zeros([group.owned.size], { device, dtype });
    const { m } = this.moments(group);
    for (const { parameter, offset } of entries) {
      const mine = overlap({ offset, size: parameter.size }, group.owned);
      if (!mine) continue;
      const part = (buffer: Tensor) => buffer.view([mine.size], mine.offset - group.owned.offset);
      native.muonMomentum(
        part(group.ownedGradients).native,
        part(m).native,
        part(direction).native,
        decision.native,
        this.momentum,
      );
    }
    return direction;
  }

  /** Updates the owned part of a matrix, from the whole directions of its group. */
  #update(
    group: ParameterGroup,
    { offset, rows, columns }: Matrix,
    mine: Range,
    whole: Tensor,
    { lr, decision }: GroupStep,
  ): void {
    scope(() => {
      const update = orthogonal(whole.view([rows, columns], offset));
      const part = (buffer: Tensor) => buffer.view([mine.size], mine.offset - group.owned.offset);
      native.muonUpdate(
        part(group.ownedWeights).native,
        group.master ? part(group.master).native : null,
        update.view([mine.size], mine.offset - offset).native,
        decision.native,
        lr,
        0.2 * Math.sqrt(Math.max(rows, columns)),
        this.options.weightDecay,
      );
    });
  }
}

/** The matrices of a parameter, by their places in the group. */
function placesOf({ parameter, offset }: PlacedParameter): Matrix[] {
  let next = offset;
  return matricesOf(parameter).map(([rows, columns]) => {
    const matrix = { rows, columns, offset: next, size: rows * columns };
    next += matrix.size;
    return matrix;
  });
}
