import { checkInstance } from "../core/check.js";
import type { Tensor } from "../core/tensor.js";
import type { ParameterGroup } from "../nn/group.js";
import type { Layout } from "../nn/parallel.js";
import { Communicator } from "./communicator.js";
import {
  type Arrival,
  type Exchange,
  exchangeOf,
  type SharedGroup,
  type StrategyOptions,
  TensorExchange,
} from "./exchange.js";
import { Schedule } from "./strategy.js";

/** Options of `FullShard`. */
export interface FullShardOptions extends StrategyOptions {
  /** The ranks that share one copy of the model. Default: all ranks. */
  shard?: Communicator;
  /** The ranks that hold the same part in other copies. Default: none. */
  replica?: Communicator | null;
}

/** The groups whose weights and gradients a slot holds. */
interface SlotState<Group> {
  weights: Group | null;
  /** The all-gather in progress that brings the weights. */
  arriving: Arrival | null;
  gradients: Group | null;
  /** The reduction that still reads the slot's gradients. */
  leaving: Arrival | null;
}

/** When `FullShard` sends what. */
export class FullShardSchedule<Group extends SharedGroup, Data> extends Schedule<Group, Data> {
  readonly layout: Layout;
  readonly #shard: Exchange<Group, Data>;
  readonly #replica: Exchange<Group, Data> | null;
  readonly #slots = new Map<object, SlotState<Group>>();
  /** Groups whose owned gradients hold a part of this step's sum. */
  readonly #filled = new Set<Group>();
  /** Groups that have been read in backward. The table of a lookup is not read there. */
  readonly #readInBackward = new Set<Group>();
  #backward = false;

  /**
   * @param shard the ranks that share one copy of the model
   * @param replica the ranks that have the same part in other copies; null if there are none
   */
  constructor(
    world: Exchange<Group, Data>,
    shard: Exchange<Group, Data> = world,
    replica: Exchange<Group, Data> | null = null,
  ) {
    super(world);
    this.#shard = shard;
    this.#replica = replica;
    this.layout = { parts: shard.size, part: shard.rank, weights: "part" };
  }

  /** Takes the groups of a model. Called once, by the store. */
  override attach(groups: readonly Group[]): void {
    super.attach(groups);
    for (const group of groups) {
      this.#slots.set(group.slot as object, {
        weights: null,
        arriving: null,
        gradients: null,
        leaving: null,
      });
    }
  }

  /** Prepares for the passes of a micro-batch. */
  beginMicroBatch(): void {
    this.#backward = false;
  }

  /** Called before a group's weights are read: they are gathered unless they are there. */
  needed(group: Group, backward: boolean): void {
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
  #fetch(group: Group): void {
    const slot = this.#stateOf(group);
    slot.weights = group;
    slot.arriving = this.#shard.gatherWeights(group);
  }

  /** Called before a group's gradients are written: makes memory for them. */
  gradientNeeded(group: Group): void {
    this.#backward = true;
    const slot = this.#stateOf(group);
    if (slot.gradients === group) return;
    // A group that computes in two places (a tied head) has written one part of its gradient and
    // will write another.
    if (slot.gradients) this.#send(slot.gradients);
    slot.leaving?.wait();
    slot.leaving = null;
    slot.gradients = group;
  }

  /** Called when a group's gradients of a micro-batch are whole: sends them to their owners. */
  gradientsComplete(group: Group): void {
    if (this.#stateOf(group).gradients === group) this.#send(group);
  }

  /**
   * Averages a slot's gradients to their owners, and adds them to the owners' sums of this step.
   */
  #send(group: Group): void {
    const slot = this.#stateOf(group);
    group.completeGradients();
    group.clearPadding();
    slot.leaving = this.#shard.scatterGradients(group, this.#filled.has(group));
    this.#filled.add(group);
    slot.gradients = null;
    group.zeroGrad();
  }

  /** Waits for the gradients that are on their way. */
  finishGradients(): void {
    for (const group of this.groups) {
      const slot = this.#stateOf(group);
      if (slot.gradients === group) this.#send(group);
    }
    for (const slot of this.#slots.values()) {
      slot.leaving?.wait();
      slot.leaving = null;
    }
    for (const group of this.groups) {
      if (!this.#filled.has(group)) group.clearOwnedGradients();
    }
    this.#filled.clear();
    this.#backward = false;
    const replica = this.#replica;
    if (!replica) return;
    const arrivals = this.groups.map((group) => replica.averageOwnedGradients(group));
    for (const arrival of arrivals) arrival.wait();
  }

  /** Adds up the squares of all ranks. @param squares (1) f32 */
  sumSquares(squares: Data): void {
    this.#shard.sum(squares).wait();
  }

  /** Called after an update: the gathered weights are out of date. */
  weightsChanged(group: Group): void {
    const slot = this.#stateOf(group);
    if (slot.weights !== group) return;
    slot.arriving?.wait();
    slot.weights = slot.arriving = null;
  }

  /** A whole group from the parts of all ranks. @param owned this rank's part */
  gather(group: Group, owned: Data): Data {
    return this.#shard.whole(group, owned);
  }

  #stateOf(group: Group): SlotState<Group> {
    return this.#slots.get(group.slot as object) as SlotState<Group>;
  }
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
export class FullShard extends FullShardSchedule<ParameterGroup, Tensor> {
  constructor(options: FullShardOptions) {
    const world = exchangeOf(options);
    const over = (name: "shard" | "replica"): TensorExchange | null => {
      const comm = options[name] ?? null;
      if (comm === null) return null;
      checkInstance("FullShard", name, comm, Communicator, "a Communicator");
      return new TensorExchange(comm, options.reduce);
    };
    super(world, over("shard") ?? world, over("replica"));
  }
}
