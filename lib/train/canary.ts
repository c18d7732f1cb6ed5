import { tensor } from "../core/create.js";
import { CorruptionError } from "../core/errors.js";
import { faultPoint } from "../core/faults.js";
import { native } from "../core/native.js";
import { scope } from "../core/scope.js";
import { empty, type Tensor } from "../core/tensor.js";
import type { ParameterStore } from "../nn/store.js";

/**
 * Looks for silent corruption (FAULTS N7): hardware that computes or stores wrong bits without an
 * error. Kernels are deterministic and replicas hold the same weights, so everything compared here
 * must be equal bit for bit.
 *
 * - A micro-batch passes through the model twice. Different gradients mean that this machine
 *   computes wrongly.
 * - bf16 weights must equal the rounded master weights. A difference means that memory changed.
 * - Ranks with whole weights compare hashes of them. The rank that differs from most others is
 *   named.
 */
export class Canary {
  readonly #store: ParameterStore;
  readonly #every: number;
  readonly #rank: number;

  /** @param every number of steps between checks; 0 disables them */
  constructor(store: ParameterStore, every: number) {
    this.#store = store;
    this.#every = every;
    this.#rank = store.parallel?.rank ?? 0;
  }

  /** Whether the step of this number, counted from 1, is checked. */
  due(step: number): boolean {
    return this.#every > 0 && step % this.#every === 0;
  }

  /**
   * Checks the hardware before a step, and discards the gradients afterwards. With several
   * processes, all of them call it.
   * @param pass enqueues one forward and backward pass, always the same one, without averaging
   *   anything over processes
   * @throws CorruptionError naming rank and parameter groups; nothing has been updated
   */
  async verify(step: number, pass: () => void): Promise<void> {
    await this.#verifyWeights(step);
    // Where weights are divided, gradients are too: a pass cannot be kept to this process.
    if (this.#store.divided) return;
    const first = await this.#gradients(pass);
    if (faultPoint("gradients") === "flip")
      await flipBit(this.#store.groups.at(-1)?.weights as Tensor);
    const second = await this.#gradients(pass);
    const groups = differing(first, second);
    if (groups.length > 0) {
      throw new CorruptionError(
        `step ${step}, rank ${this.#rank}: the same micro-batch gave other gradients when it was computed again, in ` +
          `${groups.join(", ")}. ${advice}`,
      );
    }
  }

  /** Hashes of all gradients of a pass, by group. */
  async #gradients(pass: () => void): Promise<Map<string, string>> {
    pass();
    const hashes = new Map<string, string>();
    for (const group of this.#store.groups) {
      group.completeGradients();
      hashes.set(group.name, await hashOf(group.gradients));
    }
    this.#store.zeroGrad();
    return hashes;
  }

  async #verifyWeights(step: number): Promise<void> {
    if (faultPoint("weights") === "flip")
      await flipBit(this.#store.groups[0]?.ownedWeights as Tensor);
    const weights = new Map<string, string>();
    const rounded = new Map<string, string>();
    for (const { name, ownedWeights, master } of this.#store.groups) {
      weights.set(name, await hashOf(ownedWeights));
      rounded.set(name, master ? await hashOfRounded(master, ownedWeights) : "");
      if (!master) rounded.set(name, weights.get(name) as string);
    }
    const groups = differing(weights, rounded);
    if (groups.length > 0) {
      throw new CorruptionError(
        `step ${step}, rank ${this.#rank}: bf16 weights are not their rounded master weights any more, in ` +
          `${groups.join(", ")}. ${advice}`,
      );
    }
    await this.#compareRanks(step);
  }

  /** Compares the whole weights of the ranks that hold them. */
  async #compareRanks(step: number): Promise<void> {
    const { parallel, groups, divided } = this.#store;
    if (!parallel || divided) return;
    const hashes: string[] = [];
    for (const group of groups) {
      hashes.push(await hashOf(this.#store.wholeWeights(group)));
    }
    const all = await gatherHashes(
      this.#store,
      await sha256(new TextEncoder().encode(hashes.join())),
    );
    const odd = outvoted(all);
    if (odd.length > 0) {
      throw new CorruptionError(
        `step ${step}: the weights of the ranks differ; ` +
          `${odd.length < all.length ? `against most of them stand the ranks ${odd.join(", ")}` : "no two agree"}. ` +
          advice,
      );
    }
  }
}

const advice =
  "Memory, processor or GPU made an error that nothing reported: take this machine out of the run and go on from a " +
  "checkpoint; training has not used the result";

/** Names of the entries whose values differ. */
function differing(one: Map<string, string>, other: Map<string, string>): string[] {
  return [...one].filter(([name, value]) => other.get(name) !== value).map(([name]) => name);
}

/** Ranks whose hash is not the most common one. If several hashes are equally common, all ranks. */
export function outvoted(hashes: readonly string[]): number[] {
  const counts = new Map<string, number>();
  for (const hash of hashes) counts.set(hash, (counts.get(hash) ?? 0) + 1);
  if (counts.size === 1) return [];
  const most = Math.max(...counts.values());
  const winner = [...counts].find(([, count]) => count === most)?.[0];
  const tie = [...counts.values()].filter((count) => count === most).length > 1;
  return [...hashes.keys()].filter((rank) => tie || hashes[rank] !== winner);
}

/**
 * Gathers one hash from each rank. Each rank writes into a row of its own, 16 bits per number. The
 * mean over the ranks, multiplied by their number, is then exactly the table of all rows.
 */
async function gatherHashes({ parallel, device }: ParameterStore, hash: string): Promise<string[]> {
  if (!parallel) return [hash];
  const { rank, worldSize } = parallel;
  const width = 16;
  const values = new Float32Array(worldSize * width);
  for (let i = 0; i < width; i++) {
    values[rank * width + i] = Number.parseInt(hash.slice(4 * i, 4 * i + 4), 16);
  }
  const table = tensor(values, { device });
  try {
    parallel.average(table);
    const means = await table.toArray();
    return Array.from({ length: worldSize }, (_, row) =>
      Array.from({ length: width }, (_, i) =>
        Math.round((means[row * width + i] as number) * worldSize)
          .toString(16)
          .padStart(4, "0"),
      ).join(""),
    );
  } finally {
    table.dispose();
  }
}

/**
 * SHA-256 of a tensor's bytes, copied to the host one group at a time. Hashing runs on the thread
 * pool, so that the event loop turns.
 */
async function hashOf(values: Tensor): Promise<string> {
  return await sha256(new Uint8Array(await values.toBytes()));
}

async function hashOfRounded(master: Tensor, like: Tensor): Promise<string> {
  return await scope(async () => {
    const { shape, dtype, device } = like;
    const rounded = empty(shape, { dtype, device }, "canary");
    native.cast(master.native, rounded.native);
    return await hashOf(rounded);
  });
}

async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  return Buffer.from(await crypto.subtle.digest("SHA-256", bytes)).toString("hex");
}

/**
 * Simulates a cosmic ray for tests: flips one mantissa bit of the first value, the lowest one of a
 * bf16.
 */
async function flipBit(values: Tensor): Promise<void> {
  await scope(async () => {
    const first = values.view([1], 0);
    const bits = new Uint32Array(Float32Array.from(await first.toArray()).buffer);
    bits[0] = (bits[0] as number) ^ 0x0001_0000;
    const flipped = tensor(new Float32Array(bits.buffer), { device: values.device });
    native.cast(flipped.native, first.native);
  });
}
