import type { Tensor } from "../core/tensor.js";
import type { ParameterGroup } from "../nn/group.js";
import type { Layout, ParallelStrategy } from "../nn/parallel.js";
import type { TimelineRecorder } from "./timeline.js";

/**
 * Wraps a strategy and tells a recorder, if there is one, which part of the step the compute stream
 * is in. The calls of the model, the tape and the optimizer mark these parts.
 */
export class TimedStrategy implements ParallelStrategy {
  recorder: TimelineRecorder | null = null;
  readonly #strategy: ParallelStrategy;
  #backward = false;

  constructor(strategy: ParallelStrategy) {
    this.#strategy = strategy;
  }

  get layout(): Layout {
    return this.#strategy.layout;
  }
  get worldSize(): number {
    return this.#strategy.worldSize;
  }
  get rank(): number {
    return this.#strategy.rank;
  }
  get writes(): boolean {
    return this.#strategy.writes;
  }

  attach(groups: readonly ParameterGroup[]): void {
    this.#strategy.attach(groups);
  }

  beginMicroBatch(last: boolean): void {
    this.#backward = false;
    this.recorder?.phase("input");
    this.#strategy.beginMicroBatch(last);
  }

  needed(group: ParameterGroup, backward: boolean): void {
    this.#enter(group, backward);
    this.#strategy.needed(group, backward);
  }

  gradientNeeded(group: ParameterGroup): void {
    this.#enter(group, true);
    this.#strategy.gradientNeeded(group);
  }

  gradientsComplete(group: ParameterGroup): void {
    this.#strategy.gradientsComplete(group);
  }

  finishGradients(): void {
    this.recorder?.phase("optimizer");
    this.#strategy.finishGradients();
  }

  sumSquares(squares: Tensor): void {
    this.#strategy.sumSquares(squares);
  }

  weightsChanged(group: ParameterGroup): void {
    this.#strategy.weightsChanged(group);
  }

  average(tensor: Tensor): void {
    this.recorder?.phase("loss");
    this.#strategy.average(tensor);
  }

  gather(group: ParameterGroup, owned: Tensor): Tensor {
    return this.#strategy.gather(group, owned);
  }

  /** A forward pass within the backward pass is recomputation, and counts as backward. */
  #enter(group: ParameterGroup, backward: boolean): void {
    if (backward) this.#backward = true;
    this.recorder?.phase(`${this.#backward ? "backward" : "forward"} ${group.name}`);
  }
}
