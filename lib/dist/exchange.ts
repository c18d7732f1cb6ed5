/**
 * The seam between a strategy's decisions and the memory that they are about. A strategy decides
 * which collective comes when and what waits for it; an `Exchange` knows what is moved: tensors in
 * a run, bytes and seconds in `plan`.
 */
import { checkChoice, checkInstance, checkObject } from "../core/check.js";
import { native } from "../core/native.js";
import { empty, type Tensor, untracked } from "../core/tensor.js";
import type { ParameterGroup } from "../nn/group.js";
import { Communicator, type Work } from "./communicator.js";

/** What gradients are summed in. */
export type ReduceDType = "fp32" | "bf16";

/** A collective on its way: what is enqueued after `wait()` runs after it. */
export type Arrival = Pick<Work, "wait">;

/** What a strategy sees of a group of parameters; a `ParameterGroup` is one. */
export interface SharedGroup {
  readonly name: string;
  /** Place in the store's list. */
  readonly index: number;
  /**
   * The memory that groups take turns in, compared by identity; null for a group whose weights are
   * always whole.
   */
  readonly slot: object | null;
  /** Sets to zero what this step's backward did not write. */
  completeGradients(): void;
  /** Sets the gradients' padding to zero, where a slot holds what another group has left there. */
  clearPadding(): void;
  /** Forgets the gradients; the next backward overwrites them without reading. */
  zeroGrad(): void;
  /** Sets the owned gradients to zero. */
  clearOwnedGradients(): void;
}

/**
 * The collectives that strategies use, over the ranks of one communicator. All are enqueued and
 * return at once.
 */
export interface Exchange<Group, Data> {
  /** Of this process among the ranks. */
  readonly rank: number;
  /** Ranks. */
  readonly size: number;
  /** Puts the owned weights of all ranks together, into the group's weights. */
  gatherWeights(group: Group): Arrival;
  /** The mean of the group's gradients over the ranks, in place. */
  averageGradients(group: Group): Arrival;
  /** The mean of the owned gradients alone over the ranks, in place. */
  averageOwnedGradients(group: Group): Arrival;
  /**
   * The mean of the group's gradients over the ranks, of which each gets the part that it owns.
   * @param add whether the part is added to the owned gradients instead of replacing them
   */
  scatterGradients(group: Group, add: boolean): Arrival;
  /** The sum over the ranks, in place. */
  sum(data: Data): Arrival;
  /** The mean over the ranks, in place. */
  average(data: Data): Arrival;
  /** All of a buffer of which each rank has the owned part, once it has arrived. */
  whole(group: Group, owned: Data): Data;
}

/** Moves tensors between the ranks of a communicator; gradients in the reduction's dtype. */
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

/** @param finish what is enqueued after the collective, and before whatever waits for it */
function then(arrival: Arrival, finish: () => void): Arrival {
  return {
    wait() {
      arrival.wait();
      finish();
    },
  };
}

export interface StrategyOptions {
  /** All ranks of the run. */
  world: Communicator;
  /** What gradients are summed in. */
  reduce: ReduceDType;
}

/**
 * The ranks of a run, as a strategy over tensors is given them.
 * @throws ArgumentError for options that do not fit
 */
export function exchangeOf(options: StrategyOptions): TensorExchange {
  checkObject("strategy", "options", options);
  const { world, reduce } = options;
  checkInstance("strategy", "world", world, Communicator, "a Communicator");
  checkChoice("strategy", "reduce", reduce, ["fp32", "bf16"]);
  return new TensorExchange(world, reduce);
}
