import {
  argumentError,
  checkDevice,
  checkFunction,
  checkInstance,
  checkInteger,
  checkIntegers,
  checkMade,
  checkObject,
  checkOptions,
  checkString,
  checkTensor,
} from "../core/check.js";
import { type Device, deviceName, sameDevice } from "../core/device.js";
import {
  ArgumentError,
  DeviceError,
  DTypeError,
  type PeerError,
  ShapeError,
} from "../core/errors.js";
import { deviceNumber } from "../core/native.js";
import type { Tensor } from "../core/tensor.js";
import {
  type CollectiveKind,
  type CollectiveStats,
  type NativeCommunicator,
  type NativeTimeline,
  type NativeWork,
  nativeComm,
  typed,
} from "./native-comm.js";
import { Store } from "./store.js";

export type { CollectiveKind, CollectiveStats } from "./native-comm.js";

/** A collective on its way. */
export interface Work {
  /** Operations enqueued on the device from here on run after the collective. Returns at once. */
  wait(): void;
  /**
   * Resolves when the collective has run.
   * @throws PeerError if a rank failed meanwhile
   */
  done(): Promise<void>;
}

export interface CommunicatorOptions {
  store: Store;
  device: Device;
  /** Of this group, the same on all its ranks and used once in a run. */
  name: string;
  /** Global ranks of the group, in the same order on all of them. */
  ranks: readonly number[];
  /** This process's global rank; it must be one of `ranks`. */
  rank: number;
  /** How long a collective may take from its start on this rank until its end, in milliseconds. */
  timeoutMs: number;
  /** How long to wait for the ranks of the group to connect to each other; timeoutMs if left out. */
  startTimeoutMs?: number;
  /** Told once when a rank has failed. Two seconds later the process is ended with exit code 6. */
  onFailure?: (error: PeerError) => void;
}

export type Reduction = "sum" | "avg";

class NativeBackedWork implements Work {
  readonly #native: NativeWork;

  constructor(native: NativeWork) {
    this.#native = native;
  }

  wait(): void {
    typed(() => this.#native.wait());
  }

  done(): Promise<void> {
    return typed(() => this.#native.done());
  }
}

const optionNames = [
  "store",
  "device",
  "name",
  "ranks",
  "rank",
  "timeoutMs",
  "startTimeoutMs",
  "onFailure",
];

/**
 * A group of ranks that compute together: NCCL between GPUs, Gloo between CPUs. A collective is enqueued on the device's
 * communication stream after everything that the device has been given so far, and runs beside what is given to it later;
 * `Work.wait()` orders later operations after it. Tensors may be disposed at once; they must not be written, and outputs not be
 * read, before `wait()`. All ranks of a group call the same collectives in the same order, with the same sizes.
 *
 * Results are the same bits on every rank and in every run. On the CPU an element is the sum over the ranks in their order,
 * added in fp32 and rounded once to bf16, and allReduce gives the bits of reduceScatter followed by allGather.
 */
export class Communicator {
  /** Of this process within the group. */
  readonly rank: number;
  /** Ranks in the group. */
  readonly size: number;
  readonly name: string;
  readonly device: Device;
  /** What carries the data, with version and place. */
  readonly backend: string;
  readonly #native: NativeCommunicator;
  readonly #unsubscribe: () => void;

  private constructor(native: NativeCommunicator, options: CommunicatorOptions) {
    checkMade("Communicator", "Communicator.create()", Array.isArray(options?.ranks));
    this.#native = native;
    this.rank = options.ranks.indexOf(options.rank);
    this.size = options.ranks.length;
    this.name = options.name;
    this.device = options.device;
    this.backend = native.backend;
    const { onFailure } = options;
    this.#unsubscribe = onFailure ? options.store.onFailure(onFailure) : () => {};
  }

  /**
   * Connects the ranks of a group to each other. Every rank of the group calls it.
   * @throws PeerError if they cannot be reached in time
   * @throws DeviceError if the library that carries the data is missing, with the places that were tried
   */
  static async create(options: CommunicatorOptions): Promise<Communicator> {
    const op = "communicator";
    checkObject(op, "options", options);
    checkOptions(op, options, optionNames);
    const { store, device, name, ranks, rank, timeoutMs } = options;
    checkInstance(op, "store", store, Store, "a Store");
    checkDevice(op, "device", device);
    checkString(op, "name", name);
    checkIntegers(op, "ranks", ranks, "an array of ranks");
    checkInteger(op, "rank", rank, { min: 0 });
    if (options.onFailure !== undefined) checkFunction(op, "onFailure", options.onFailure);
    if (new Set(ranks).size !== ranks.length || !ranks.includes(rank)) {
      throw new ArgumentError(
        `[communicator] expected different ranks with ${rank} among them, got [${ranks}]`,
      );
    }
    if (rank !== store.rank) {
      throw new ArgumentError(
        `[communicator] the store was connected as rank ${store.rank}, not ${rank}`,
      );
    }
    const bad = ranks.find((r) => !Number.isInteger(r) || r < 0 || r >= store.worldSize);
    if (bad !== undefined) {
      throw new ArgumentError(
        `[communicator] expected ranks from 0 to ${store.worldSize - 1}, got ${bad}`,
      );
    }
    const { startTimeoutMs = timeoutMs } = options;
    for (const limit of [timeoutMs, startTimeoutMs]) {
      if (!(Number.isInteger(limit) && limit > 0 && limit < 2 ** 31)) {
        throw argumentError(op, "a timeout of at least 1 ms", "timeoutMs", limit);
      }
    }
    const native = await nativeComm.createCommunicator(
      store.native,
      deviceNumber(device),
      name,
      ranks,
      timeoutMs,
      startTimeoutMs,
    );
    return new Communicator(native, options);
  }

  /** Replaces the tensor (f32 or bf16) on every rank by the sum, or the mean, over the ranks. */
  allReduce(tensor: Tensor, op: Reduction = "sum"): Work {
    this.#check("allReduce", [tensor], ["f32", "bf16"]);
    return this.#work(() => this.#native.allReduce(tensor.native, op === "avg"));
  }

  /**
   * Sums, or averages, over the ranks and leaves each rank its part: rank r the r-th of `size` equal parts.
   * @param input size · output.size elements, f32 or bf16
   * @param output may be the part of `input` that this rank gets
   */
  reduceScatter(input: Tensor, output: Tensor, op: Reduction = "sum"): Work {
    this.#check("reduceScatter", [input, output], ["f32", "bf16"]);
    this.#checkSizes("reduceScatter", "input", input, "output", output);
    return this.#work(() => this.#native.reduceScatter(input.native, output.native, op === "avg"));
  }

  /**
   * Puts the inputs of all ranks one after the other, in the order of the ranks.
   * @param output size · input.size elements, of any dtype; `input` may be this rank's part of it
   */
  allGather(input: Tensor, output: Tensor): Work {
    this.#check("allGather", [input, output]);
    this.#checkSizes("allGather", "output", output, "input", input);
    return this.#work(() => this.#native.allGather(input.native, output.native));
  }

  /** Replaces the tensor (any dtype) on every rank by that of rank `root` of the group. */
  broadcast(tensor: Tensor, root: number): Work {
    this.#check("broadcast", [tensor]);
    checkInteger("broadcast", "root", root, { min: 0, max: this.size - 1 });
    return this.#work(() => this.#native.broadcast(tensor.native, root));
  }

  /** Resolves when every rank of the group has called it and done all work that its device was given before. */
  barrier(): Promise<void> {
    return this.#work(() => this.#native.barrier()).done();
  }

  /** What has been moved so far, by kind. */
  get stats(): Record<CollectiveKind, CollectiveStats> {
    return this.#native.stats();
  }

  /** @internal For a `Timeline`. */
  makeTimeline(): NativeTimeline {
    return typed(() => this.#native.makeTimeline());
  }

  /** @internal For a `Timeline`: what to write collectives into from here on. */
  follow(timeline: NativeTimeline | null): void {
    typed(() => this.#native.follow(timeline));
  }

  /** Waits for the collectives on their way, then lets go of the connections. */
  async close(): Promise<void> {
    this.#unsubscribe();
    await typed(() => this.#native.close());
  }

  /** Ends everything on its way with a PeerError; the other ranks learn of it as of a failure. */
  abort(reason = "the program aborted it"): void {
    typed(() => this.#native.abort(reason));
  }

  #work(start: () => NativeWork): Work {
    return new NativeBackedWork(typed(start));
  }

  #check(op: string, tensors: readonly Tensor[], dtypes?: readonly string[]): void {
    const [first] = tensors as [Tensor];
    for (const tensor of tensors) {
      checkTensor(op, "tensor", tensor);
      if (!sameDevice(tensor.device, this.device)) {
        throw new DeviceError(
          `[${op}] expected a tensor on ${deviceName(this.device)}, got one on ${deviceName(tensor.device)}`,
        );
      }
      if (dtypes && !dtypes.includes(tensor.dtype)) {
        throw new DTypeError(`[${op}] expected dtype ${dtypes.join(" or ")}, got ${tensor.dtype}`);
      }
      if (tensor.dtype !== first.dtype) {
        throw new DTypeError(`[${op}] input is ${first.dtype} and output ${tensor.dtype}`);
      }
    }
  }

  #checkSizes(op: string, whole: string, large: Tensor, part: string, small: Tensor): void {
    if (large.size === small.size * this.size) return;
    throw new ShapeError(
      `[${op}] expected ${whole} to have ${this.size} times the ${small.size} elements of ${part}, got ${large.size}`,
    );
  }
}
