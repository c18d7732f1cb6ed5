/**
 * The interface between a strategy's decisions and the memory that they concern. A strategy decides
 * which collective runs when and what waits for it. An `Exchange` moves the data: tensors in a run,
 * bytes and seconds in `plan`.
 */
import { checkChoice, checkInstance, checkObject } from "../core/check.js";
import { native } from "../core/native.js";
import { empty, type Tensor, untracked } from "../core/tensor.js";
import type { ParameterGroup } from "../nn/group.js";
import { Communicator, type Work } from "./communicator.js";

/** The dtype in which gradients are summed. */
export type ReduceDType = "fp32" | "bf16";

/** A collective in progress. Work enqueued after `wait()` runs after the collective. */
export type Arrival = Pick<Work, "wait">;

/** The view of a group of parameters that a strategy has; `ParameterGroup` implements it. */
export interface SharedGroup {
  readonly name: string;
  /** Index in the store's list of groups. */
  readonly index: number;
  /**
   * The memory slot that groups take turns in, compared by identity; null for a group whose weights
   * are always whole.
   */
  readonly slot: object | null;
  /** Zeroes the gradients that this step's backward did not write. */
  completeGradients(): void;
  /** Sets the gradients' padding to zero if the slot holds leftovers of another group. */
  clearPadding(): void;
  /** Forgets the gradients. The next backward overwrites them without reading. */
  zeroGrad(): void;
  /** Sets the owned gradients to zero. */
  clearOwnedGradients(): void;
}

/**
 * The collectives that strategies use, over the ranks of one communicator. All are enqueued and
 * return at once.
 */
export interface Exchange<Group, Data> {
  /** Rank of this process. */
  readonly rank: number;
  /** Number of ranks. */
  readonly size: number;
  /** Gathers the owned weights of all ranks into the group's weights. */
  gatherWeights(group: Group): Arrival;
  /** Averages the group's gradients over the ranks, in place. */
  averageGradients(group: Group): Arrival;
  /** Averages only the owned gradients over the ranks, in place. */
  averageOwnedGradients(group: Group): Arrival;
  /**
   * Averages the group's gradients over the ranks, and gives each rank the part that it owns.
   * @param add whether the part is added to the owned gradients instead of replacing them
   */
  scatterGradients(group: Group, add: boolean): Arrival;
  /** Sums over the ranks, in place. */
  sum(data: Data): Arrival;
  /** Averages over the ranks, in place. */
  average(data: Data): Arrival;
  /**
   * Gathers a whole buffer of which each rank has its owned part. Work enqueued after the call sees
   * the whole buffer.
   */
  whole(group: Group, owned: Data): Data;
}

/**
 * Moves tensors between the ranks of a communicator. Gradients are sent in the reduction's dtype.
 */
export class TensorExchange implements Exchange<ParameterGroup, Tensor> {
  readonly rank: number;
  readonly size: number;
  readonly #comm: Communicator;
  readonly #reduce: ReduceDType;

  constructor(comm: Communicator, reduce: ReduceDType) {
    this.rank = comm.rank;
    this.size = comm.size;
    this.#comm = comm;
    this.#reduce = reduce;
  }

  gatherWeights(group: ParameterGroup): Arrival {
    return this.#comm.allGather(group.ownedWeights, group.weights);
  }

  averageGradients(group: ParameterGroup): Arrival {
    return this.#allReduce(group.gradients);
  }

  averageOwnedGradients(group: ParameterGroup): Arrival {
    return this.#allReduce(group.ownedGradients);
  }

  scatterGradients(group: ParameterGroup, add: boolean): Arrival {
    const owned = group.ownedGradients;
    if (!add) return this.#reduceScatter(group.gradients, owned);
    const part = untracked(owned.shape, "f32", owned.device, "reduceScatter");
    const arrival = this.#reduceScatter(group.gradients, part);
    return then(arrival, () => {
      native.accumulate(part.native, owned.native);
      part.dispose();
    });
  }

  sum(tensor: Tensor): Arrival {
    return this.#comm.allReduce(tensor);
  }

  average(tensor: Tensor): Arrival {
    return this.#comm.allReduce(tensor, "avg");
  }

  whole(group: ParameterGroup, owned: Tensor): Tensor {
    if (owned.size === group.size) return owned.view([group.size]);
    const whole = empty([group.size], owned, "gather");
    this.#comm.allGather(owned, whole).wait();
    return whole;
  }

  #allReduce(tensor: Tensor): Arrival {
    if (this.#reduce === "fp32") return this.#comm.allReduce(tensor, "avg");
    const rounded = untracked(tensor.shape, "bf16", tensor.device, "allReduce");
    native.cast(tensor.native, rounded.native);
    return then(this.#comm.allReduce(rounded, "avg"), () => {
      native.cast(rounded.native, tensor.native);
      rounded.dispose();
    });
  }

  /** @param output f32 */
  #reduceScatter(input: Tensor, output: Tensor): Arrival {
    if (this.#reduce === "fp32") return this.#comm.reduceScatter(input, output, "avg");
    const rounded = untracked(input.shape, "bf16", input.device, "reduceScatter");
    const part = untracked(output.shape, "bf16", input.device, "reduceScatter");
    native.cast(input.native, rounded.native);
    const work = this.#comm.reduceScatter(rounded, part, "avg");
    rounded.dispose();
    return then(work, () => {
      native.cast(part.native, output.native);
      part.dispose();
    });
  }
}

/** @param finish enqueues work after the collective, and before any work that waits for it */
function then(arrival: Arrival, finish: () => void): Arrival {
  return {
    wait() {
      arrival.wait();
      finish();
    },
  };
}

/** What every strategy needs: the ranks and the number format of the gradients. */
export interface StrategyOptions {
  /** All ranks of the run. */
  world: Communicator;
  /** The dtype in which gradients are summed. */
  reduce: ReduceDType;
}

/** Connects a run's ranks for a strategy over tensors. @throws ArgumentError for invalid options */
export function exchangeOf(options: StrategyOptions): TensorExchange {
  checkObject("strategy", "options", options);
  const { world, reduce } = options;
  checkInstance("strategy", "world", world, Communicator, "a Communicator");
  checkChoice("strategy", "reduce", reduce, ["fp32", "bf16"]);
  return new TensorExchange(world, reduce);
}
