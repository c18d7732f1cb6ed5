/**
 * What lib/dist's strategies are given in `plan`: ranks that send bytes and take time, and groups
 * without memory.
 */
import type { Arrival, Exchange, SharedGroup } from "../dist/exchange.js";
import type { Layout } from "../nn/parallel.js";
import type { Ring, RingCollective, StepQueues } from "./step-queues.js";

/** A group of parameters by its sizes alone. */
export class SimulatedGroup implements SharedGroup {
  readonly name: string;
  readonly index: number;
  /** Elements, padding included. */
  readonly size: number;
  /** Elements that a rank owns. */
  readonly owned: number;
  readonly slot: object | null;

  /** @param slots two things to take turns in, where weights are divided */
  constructor(index: number, size: number, layout: Layout, slots: readonly [object, object]) {
    this.name = `group ${index}`;
    this.index = index;
    this.size = size;
    this.owned = size / layout.parts;
    this.slot = layout.weights === "part" ? (slots[index % 2] as object) : null;
  }

  // A run's kernels for these take no time worth planning.
  completeGradients(): void {}
  clearPadding(): void {}
  zeroGrad(): void {}
  clearOwnedGradients(): void {}
}

/** Some numbers of a run, such as its loss. */
export interface SimulatedData {
  /** Of all of them. */
  readonly bytes: number;
}

/** Bytes of an element on its way. */
export interface ElementBytes {
  weight: number;
  gradient: number;
}

/** Starts collectives on the queues of a rank, as long as their bytes take over a ring. */
export class SimulatedExchange implements Exchange<SimulatedGroup, SimulatedData> {
  /** All ranks do the same work: the first stands for them. */
  readonly rank = 0;
  readonly size: number;
  readonly #queues: StepQueues;
  readonly #ring: Ring;
  readonly #bytes: ElementBytes;

  constructor(queues: StepQueues, ring: Ring, bytes: ElementBytes) {
    this.size = ring.ranks;
    this.#queues = queues;
    this.#ring = ring;
    this.#bytes = bytes;
  }

  gatherWeights(group: SimulatedGroup): Arrival {
    return this.#start("allGather", group.size * this.#bytes.weight);
  }

  averageGradients(group: SimulatedGroup): Arrival {
    return this.#start("allReduce", group.size * this.#bytes.gradient);
  }

  averageOwnedGradients(group: SimulatedGroup): Arrival {
    return this.#start("allReduce", group.owned * this.#bytes.gradient);
  }

  scatterGradients(group: SimulatedGroup): Arrival {
    return this.#start("reduceScatter", group.size * this.#bytes.gradient);
  }

  sum(data: SimulatedData): Arrival {
    return this.#start("allReduce", data.bytes);
  }

  average(data: SimulatedData): Arrival {
    return this.#start("allReduce", data.bytes);
  }

  whole(group: SimulatedGroup, owned: SimulatedData): SimulatedData {
    const bytes = (owned.bytes / group.owned) * group.size;
    if (group.owned < group.size) this.#start("allGather", bytes).wait();
    return { bytes };
  }

  #start(kind: RingCollective, bytes: number): Arrival {
    const end = this.#queues.start(kind, this.#ring, bytes);
    return { wait: () => this.#queues.wait(end) };
  }
}
