import type { LeafHooks, Tensor } from "../core/tensor.js";
import type { ParameterGroup } from "./group.js";

/** How the memory of a store's groups is divided between processes that train together. */
export interface Layout {
  /**
   * Equal parts that a group is divided into: this process owns, and its optimizer updates, one of
   * them.
   */
  readonly parts: number;
  /** Which part, from 0 on. */
  readonly part: number;
  /**
   * Whether each process holds all weights, or its part and, for as long as they are needed, those
   * of a few groups.
   */
  readonly weights: "whole" | "part";
}

/** One process has everything. */
export const undivided: Layout = { parts: 1, part: 0, weights: "whole" };

/**
 * Keeps the groups of a store in step with those of other processes. The model knows nothing of it:
 * uses of parameters and the tape tell it which group is needed and whose gradients are complete,
 * the optimizer when the weights have changed. Everything here is enqueued and returns at once.
 *
 * `plan` drives strategies without memory: `Group` and `Data` are then what it has in place of
 * groups and tensors.
 */
export interface ParallelStrategy<Group = ParameterGroup, Data = Tensor> {
  readonly layout: Layout;
  /** Processes whose gradients are averaged. */
  readonly worldSize: number;
  /** This process among them. */
  readonly rank: number;
  /** Whether this process writes what is written once for all of them. */
  readonly writes: boolean;
  /** Takes on the groups of a store, once. */
  attach(groups: readonly Group[]): void;
  /** A group's weights are about to be read. */
  needed(group: Group, backward: boolean): void;
  /** A group's gradients are about to be written. */
  gradientNeeded(group: Group): void;
  /** Everything on the tape that writes this group's gradients has done so. */
  gradientsComplete(group: Group): void;
  /**
   * A forward and backward pass begins.
   * @param last whether it is the last one before the optimizer's step
   */
  beginMicroBatch(last: boolean): void;
  /** From here on the owned gradients of all groups are the mean over all processes. */
  finishGradients(): void;
  /**
   * Sums the squares of what the processes own, f32 (groups), in place, so that each has the whole
   * gradient's.
   */
  sumSquares(squares: Data): void;
  /** The owned weights of a group have been updated. */
  weightsChanged(group: Group): void;
  /** The mean over all processes, in place: f32 of any shape. */
  average(data: Data): void;
  /**
   * All of a buffer of which each process has the owned part. Belongs to the current scope.
   * @param owned (owned.size) of any dtype
   */
  gather(group: Group, owned: Data): Data;
}

/** Counts, for each group, the records on the tape that will write its gradients. */
export class GroupHooks implements LeafHooks {
  readonly #group: ParameterGroup;
  readonly #strategy: ParallelStrategy;
  #pending = 0;

  constructor(group: ParameterGroup, strategy: ParallelStrategy) {
    this.#group = group;
    this.#strategy = strategy;
  }

  neededInBackward(): void {
    this.#strategy.needed(this.#group, true);
  }

  recorded(): void {
    this.#pending++;
  }

  dropped(): void {
    this.#pending--;
  }

  gradientNeeded(): void {
    this.#strategy.gradientNeeded(this.#group);
  }

  gradientWritten(): void {
    if (--this.#pending === 0) this.#strategy.gradientsComplete(this.#group);
  }
}
