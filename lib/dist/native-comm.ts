/** The addon's communication functions (csrc/napi/comm_wrap.h), typed, with typed errors. */
import { addon, type NativeTensor, typedNativeError } from "../core/native.js";

/**
 * A rank's connection to the run's store. All promises reject with ERR_PEER once a rank has failed.
 */
export interface NativeStore {
  /** Address of this host at which the other ranks can reach it. */
  readonly localAddress: string;
  set(key: string, value: Uint8Array): Promise<void>;
  get(key: string, timeoutMs: number): Promise<ArrayBuffer>;
  add(key: string, amount: number): Promise<number>;
  barrier(name: string, timeoutMs: number): Promise<void>;
  /** Registers a listener that is called once, with the message, when a rank has failed. */
  onFailure(listener: (message: string) => void): void;
  close(): Promise<void>;
}

/** An enqueued collective. */
export interface NativeWork {
  wait(): void;
  done(): Promise<void>;
}

/** Points in time of a device's streams, on one clock. */
export interface NativeTimeline {
  /**
   * Marks the moment at which the compute stream has run everything enqueued so far. Returns the
   * moment's number.
   */
  mark(): number;
  /**
   * Milliseconds from the first moment to each, once all have passed; NaN where a failure came
   * first.
   */
  times(): Float64Array;
  spans(): NativeSpan[];
}

/** A collective, from its start to its end. */
export interface NativeSpan {
  group: string;
  name: CollectiveKind;
  /** Bytes of its larger side. */
  bytes: number;
  /**
   * Whether the span is the compute stream's wait for the collective; otherwise it is the
   * collective itself.
   */
  waiting: boolean;
  start: number;
  end: number;
}

/** Amount of data moved by one kind of collective. */
export interface CollectiveStats {
  /** Number of collectives so far. */
  calls: number;
  /**
   * Bytes of their tensors on this rank: those of the larger side, where input and output differ.
   */
  bytes: number;
  /**
   * Bytes that this rank sends with the bandwidth-optimal algorithm, the theoretical traffic of its
   * link.
   */
  sentBytes: number;
}

/** The operations that all ranks of a group do together. */
export type CollectiveKind = "allReduce" | "reduceScatter" | "allGather" | "broadcast" | "barrier";

export interface NativeCommunicator {
  allReduce(tensor: NativeTensor, average: boolean): NativeWork;
  reduceScatter(input: NativeTensor, output: NativeTensor, average: boolean): NativeWork;
  allGather(input: NativeTensor, output: NativeTensor): NativeWork;
  broadcast(tensor: NativeTensor, root: number): NativeWork;
  barrier(): NativeWork;
  stats(): Record<CollectiveKind, CollectiveStats>;
  /** Library that carries the data: "Gloo 0.5.0 from /path", "NCCL 2.27.3 from /path". */
  readonly backend: string;
  makeTimeline(): NativeTimeline;
  /** Records collectives, and waits for them, in the timeline from here on; null stops it. */
  follow(timeline: NativeTimeline | null): void;
  close(): Promise<void>;
  abort(reason: string): void;
}

interface Functions {
  connectStore(
    host: string,
    port: number,
    rank: number,
    worldSize: number,
    token: string,
    timeoutMs: number,
    oneHost: boolean,
  ): Promise<NativeStore>;
  createCommunicator(
    store: NativeStore,
    device: number,
    name: string,
    ranks: readonly number[],
    timeoutMs: number,
    startTimeoutMs: number,
  ): Promise<NativeCommunicator>;
}

const functions = addon.comm as unknown as Functions;

/** Runs a native call and gives its errors, thrown or rejected, their classes. */
export function typed<T>(call: () => T): T {
  try {
    const result = call();
    if (!(result instanceof Promise)) return result;
    return result.catch((error: unknown) => {
      throw typedNativeError(error);
    }) as T;
  } catch (error) {
    throw typedNativeError(error);
  }
}

export const nativeComm: Functions = {
  connectStore: (...args) => typed(() => functions.connectStore(...args)),
  createCommunicator: (...args) => typed(() => functions.createCommunicator(...args)),
};
