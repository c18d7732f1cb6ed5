import { checkInstance } from "../core/check.js";
import { native } from "../core/native.js";
import { type Tensor, untracked } from "../core/tensor.js";
import type { ParameterGroup, Slot } from "../nn/group.js";
import type { Layout } from "../nn/parallel.js";
import { Communicator, type Work } from "./communicator.js";
import { Strategy, type StrategyOptions, startAllReduce, startReduceScatter } from "./strategy.js";

export interface FullShardOptions extends StrategyOptions {
  /** The ranks that share one copy of the model. Default: all ranks. */
  shard?: Communicator;
  /** The ranks that hold the same part in other copies. Default: none. */
  replica?: Communicator | null;
}

/** The groups whose weights and gradients a slot holds. */
interface SlotState {
  weights: ParameterGroup | null;
  /** The all-gather in progress that brings the weights. */
  arriving: Work | null;
  gradients: ParameterGroup | null;
  /** Finishes the reduction that still reads the slot's gradients. */
  leaving: (() => void) | null;
}

/**
 * Shards weights, gradients and optimizer state (ZeRO stage 3, arXiv 1910.02054; FSDP, arXiv
 * 2304.11277). A rank holds its part of each group. A group's whole weights exist from just before
 * it computes until the group after next takes its slot. While a group computes, the weights of the
 * next group are gathered (in backward, of the previous one). Its gradients are averaged to their
 * owners while the group before it computes its own. This happens in every micro-batch, because no
 * rank keeps whole gradients.
 *
 * With replicas (hybrid), the parts are then averaged over the copies, once a step.
 */
export class FullShard extends Strategy {
  readonly layout: Layout;
  readonly #shard: Communicator;
  readonly #replica: Communicator | null;
  readonly #slots = new Map<Slot, SlotState>();
  /** Groups whose owned gradients hold a part of this step's sum. */
  readonly #filled = new Set<ParameterGroup>();
  /** Groups that have been read in backward. The table of a lookup is not read there. */
  readonly #readInBackward = new Set<ParameterGroup>();
  #backward = false;

  constructor(options: FullShardOptions) {
    super(options);
    for (const name of ["shard", "replica"] as const) {
      const comm = options[name] ?? null;
      if (comm !== null) checkInstance("FullShard", name, comm, Communicator, "a Communicator");
    }
    this.#shard = options.shard ?? this.world;
    this.#replica = options.replica ?? null;
    this.layout = { parts: this.#shard.size, part: this.#shard.rank, weights: "part" };
  }

  override attach(groups: readonly ParameterGroup[]): void {
    super.attach(groups);
    for (const group of groups) {
      this.#slots.set(group.slot as Slot, {
        weights: null,
        arriving: null,
        gradients: null,
        leaving: null,
      });
    }
  }

  beginMicroBatch(): void {
    this.#backward = false;
  }

  needed(group: ParameterGroup, backward: boolean): void {
    if (backward) this.#backward = true;
    if (this.#backward) this.#readInBackward.add(group);
    const slot = this.#stateOf(group);
    if (slot.weights !== group) this.#fetch(group);
    slot.arriving?.wait();
    slot.arriving = null;
    const next = this.groups[group.index + (this.#backward ? -1 : 1)];
    if (!next || this.#stateOf(next).weights === next) return;
    if (!this.#backward || this.#readInBackward.has(next)) this.#fetch(next);
  }

  /**
   * The all-gather runs after everything enqueued so far, so earlier users of the slot are done.
   */
  #fetch(group: ParameterGroup): void {
    const slot = this.#stateOf(group);
    slot.weights = group;
    slot.arriving = this.#shard.allGather(group.ownedWeights, group.weights);
  }

  gradientNeeded(group: ParameterGroup): void {
    this.#backward = true;
    const slot = this.#stateOf(group);
    if (slot.gradients === group) return;
    // A group that computes in two places (a tied head) has written one part of its gradient and
    // will write another.
    if (slot.gradients) this.#send(slot.gradients);
    slot.leaving?.();
    slot.leaving = null;
    slot.gradients = group;
  }

  gradientsComplete(group: ParameterGroup): void {
    if (this.#stateOf(group).gradients === group) this.#send(group);
  }

  /**
   * Averages a slot's gradients to their owners, and adds them to the owners' sums of this step.
   */
  #send(group: ParameterGroup): void {
    const slot = this.#stateOf(group);
    group.completeGradients();
    clearPadding(group);
    const first = !this.#filled.has(group);
    this.#filled.add(group);
    const owned = group.ownedGradients;
    const part = first ? owned : untracked(owned.shape, "f32", owned.device, "reduceScatter");
    const work = startReduceScatter(this.#shard, group.gradients, part, this.reduce);
    slot.gradients = null;
    slot.leaving = () => {
      work.wait();
      if (first) return;
      native.accumulate(part.native, owned.native);
      part.dispose();
    };
    group.zeroGrad();
  }

  finishGradients(): void {
    for (const group of this.groups) {
      const slot = this.#stateOf(group);
      if (slot.gradients === group) this.#send(group);
    }
    for (const slot of this.#slots.values()) {
      slot.leaving?.();
      slot.leaving = null;
    }
    for (const group of this.groups) {
      if (!this.#filled.has(group)) native.fill(group.ownedGradients.native, 0);
    }
    this.#filled.clear();
    this.#backward = false;
    const replica = this.#replica;
    if (!replica) return;
    const works = this.groups.map((group) =>
      startAllReduce(replica, group.ownedGradients, this.reduce),
    );
    for (const work of works) work.wait();
  }

  sumSquares(squares: Tensor): void {
    this.#shard.allReduce(squares).wait();
  }

  weightsChanged(group: ParameterGroup): void {
    const slot = this.#stateOf(group);
    if (slot.weights !== group) return;
    slot.arriving?.wait();
    slot.weights = slot.arriving = null;
  }

  gather(group: ParameterGroup, owned: Tensor): Tensor {
    return this.gatherOver(this.#shard, group, owned);
  }

  #stateOf(group: ParameterGroup): SlotState {
    return this.#slots.get(group.slot as Slot) as SlotState;
  }
}

/** Clears the padding between parameters, where a slot holds remains of another group. */
function clearPadding(group: ParameterGroup): void {
  for (const { offset, size } of group.padding()) {
    const gap = group.gradients.view([size], offset);
    native.fill(gap.native, 0);
    gap.dispose();
  }
}
