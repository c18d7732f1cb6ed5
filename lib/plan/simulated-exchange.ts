/**
 * Simulated inputs for the strategies of lib/dist, used by `plan`: ranks that send bytes and take
 * time, and groups without memory.
 */
import type { Arrival, Exchange, SharedGroup } from "../dist/exchange.js";
import type { Layout } from "../nn/parallel.js";
import type { Ring, RingCollective, StepQueues } from "./step-queues.js";

/** A group of parameters that has sizes but no memory. */
export class SimulatedGroup implements SharedGroup {
  readonly name: string;
  readonly index: number;
  /** Elements, padding included. */
  readonly size: number;
  /** Elements owned by one rank. */
  readonly owned: number;
  readonly slot: object | null;

  /** @param slots two memory slots that groups take turns in, for sharded weights */
  constructor(index: number, size: number, layout: Layout, slots: readonly [object, object]) {
    this.name = `group ${index}`;
    this.index = index;
    this.size = size;
    this.owned = size / layout.parts;
    this.slot = layout.weights === "part" ? (slots[index % 2] as object) : null;
  }

  // In a real run, the kernels for these calls take negligible time.
  completeGradients(): void {}
  clearPadding(): void {}
  zeroGrad(): void {}
  clearOwnedGradients(): void {}
}

/** A few numbers of a run, such as its loss. */
export interface SimulatedData {
  /** Total bytes of the numbers. */
  readonly bytes: number;
}

/** Bytes of an element in transit. */
export interface ElementBytes {
  weight: number;
  gradient: number;
}

/** Starts collectives on a rank's queues. Each takes the time that its bytes need over a ring. */
export class SimulatedExchange implements Exchange<SimulatedGroup, SimulatedData> {
  /** All ranks do the same work, so rank 0 stands for them all. */
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
