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

/** A collective in progress. */
export interface Work {
  /** Operations enqueued on the device from here on run after the collective. Returns at once. */
  wait(): void;
  /**
   * Resolves when the collective has finished.
   * @throws PeerError if a rank failed meanwhile
   */
  done(): Promise<void>;
}

/** The device of a communicator and its time limits. */
export interface CommunicatorOptions {
  store: Store;
  device: Device;
  /** Name of the group, equal on all its ranks and used once in a run. */
  name: string;
  /** Global ranks of the group, in the same order on all of them. */
  ranks: readonly number[];
  /** This process's global rank; it must be one of `ranks`. */
  rank: number;
  /** Time limit of a collective, from its start on this rank to its end, in milliseconds. */
  timeoutMs: number;
  /**
   * Time limit for connecting the group's ranks to each other, in milliseconds. Default: timeoutMs.
   */
  startTimeoutMs?: number;
  /**
   * Called once when a rank has failed. Two seconds later the process is ended with exit code 6.
   */
  onFailure?: (error: PeerError) => void;
}

/** What ranks make of their values: the sum, or the mean. */
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
 * A group of ranks that compute together, over NCCL between GPUs and over Gloo between CPUs. A
 * collective is enqueued on the device's communication stream after everything enqueued on the
 * device so far, and overlaps with later operations; `Work.wait()` orders later operations after
 * it. Tensors may be disposed at once, but until `wait()` no tensor of the collective may be
 * written and no output read. All ranks of a group call the same collectives in the same order,
 * with the same sizes.
 *
 * Results have the same bits on every rank and in every run. On the CPU an element is the sum over
 * the ranks in rank order, added in fp32 and rounded once to bf16, and allReduce gives the bits of
 * reduceScatter followed by allGather.
 */
export class Communicator {
  /** Rank of this process within the group. */
  readonly rank: number;
  /** Number of ranks in the group. */
  readonly size: number;
  readonly name: string;
  readonly device: Device;
  /** Library that carries the data, with its version and path. */
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
   * @throws DeviceError if the library that carries the data is missing, with the paths that were
   *   tried
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

  /** Replaces the tensor (f32 or bf16) on every rank with the sum, or the mean, over the ranks. */
  allReduce(tensor: Tensor, op: Reduction = "sum"): Work {
    this.#check("allReduce", [tensor], ["f32", "bf16"]);
    return this.#work(() => this.#native.allReduce(tensor.native, op === "avg"));
  }

  /**
   * Sums, or averages, over the ranks. Rank r receives the r-th of `size` equal parts of the
   * result.
   * @param input size · output.size elements, f32 or bf16
   * @param output may be this rank's part of `input`
   */
  reduceScatter(input: Tensor, output: Tensor, op: Reduction = "sum"): Work {
    this.#check("reduceScatter", [input, output], ["f32", "bf16"]);
    this.#checkSizes("reduceScatter", "input", input, "output", output);
    return this.#work(() => this.#native.reduceScatter(input.native, output.native, op === "avg"));
  }

  /**
   * Concatenates the inputs of all ranks, in rank order.
   * @param output size · input.size elements, of any dtype; `input` may be this rank's part of it
   */
  allGather(input: Tensor, output: Tensor): Work {
    this.#check("allGather", [input, output]);
    this.#checkSizes("allGather", "output", output, "input", input);
    return this.#work(() => this.#native.allGather(input.native, output.native));
  }

  /** Replaces the tensor (any dtype) on every rank with that of the group's rank `root`. */
  broadcast(tensor: Tensor, root: number): Work {
    this.#check("broadcast", [tensor]);
    checkInteger("broadcast", "root", root, { min: 0, max: this.size - 1 });
    return this.#work(() => this.#native.broadcast(tensor.native, root));
  }

  /**
   * Resolves when every rank of the group has called it and its device has finished all earlier
   * work.
   */
  barrier(): Promise<void> {
    return this.#work(() => this.#native.barrier()).done();
  }

  /** Amount of data moved so far, by kind of collective. */
  get stats(): Record<CollectiveKind, CollectiveStats> {
    return this.#native.stats();
  }

  /** @internal For a `Timeline`. */
  makeTimeline(): NativeTimeline {
    return typed(() => this.#native.makeTimeline());
  }

  /** @internal For a `Timeline`: records collectives into `timeline` from here on. */
  follow(timeline: NativeTimeline | null): void {
    typed(() => this.#native.follow(timeline));
  }

  /** Waits for the collectives in progress, then closes the connections. */
  async close(): Promise<void> {
    this.#unsubscribe();
    await typed(() => this.#native.close());
  }

  /** Ends all collectives in progress with a PeerError. The other ranks are told of a failure. */
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
