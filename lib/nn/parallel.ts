import type { LeafHooks, Tensor } from "../core/tensor.js";
import type { ParameterGroup } from "./group.js";

/** Division of a store's memory between processes that train together. */
export interface Layout {
  /**
   * Number of equal parts of a group. This process owns one of them, and its optimizer updates that
   * one.
   */
  readonly parts: number;
  /** Index of this process's part, from 0 on. */
  readonly part: number;
  /**
   * "whole" if each process holds all weights; "part" if it holds its part and, while they are
   * needed, the whole weights of a few groups.
   */
  readonly weights: "whole" | "part";
}

/** Layout of a single process, which owns everything. */
export const undivided: Layout = { parts: 1, part: 0, weights: "whole" };

/**
 * Synchronises the groups of a store with those of other processes. The model does not know about
 * it. Uses of parameters and the tape report which group is needed and whose gradients are
 * complete, and the optimizer reports changed weights. All methods enqueue work and return at once.
 *
 * `plan` drives strategies without memory: `Group` and `Data` then stand for its groups and numbers.
 */
export interface ParallelStrategy<Group = ParameterGroup, Data = Tensor> {
  readonly layout: Layout;
  /** Number of processes whose gradients are averaged. */
  readonly worldSize: number;
  /** Rank of this process among them. */
  readonly rank: number;
  /** Whether this process writes the files that one process writes for all. */
  readonly writes: boolean;
  /** Attaches the groups of a store. Called once. */
  attach(groups: readonly Group[]): void;
  /** Called before a group's weights are read. */
  needed(group: Group, backward: boolean): void;
  /** Called before a group's gradients are written. */
  gradientNeeded(group: Group): void;
  /** Called when every operation on the tape that writes this group's gradients has done so. */
  gradientsComplete(group: Group): void;
  /**
   * Called at the start of a forward and backward pass. @param last whether it is the last one
   * before the optimizer's step
   */
  beginMicroBatch(last: boolean): void;
  /**
   * Completes the reductions: afterwards the owned gradients of all groups are the mean over all
   * processes.
   */
  finishGradients(): void;
  /**
   * Sums the squares of the processes' owned parts, f32 (groups), in place, so that each process
   * has those of the whole gradient.
   */
  sumSquares(squares: Data): void;
  /** Called when the owned weights of a group have been updated. */
  weightsChanged(group: Group): void;
  /** Averages over all processes, in place. f32 of any shape. */
  average(data: Data): void;
  /**
   * Gathers a buffer of which each process has the owned part. The result belongs to the current
   * scope.
   * @param owned (owned.size) of any dtype
   */
  gather(group: Group, owned: Data): Data;
}

/** Counts the records on the tape that will write a group's gradients. */
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
