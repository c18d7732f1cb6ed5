/** The addon's communication functions (csrc/napi/comm_wrap.h), typed, with typed errors. */
import { addon, type NativeTensor, typedNativeError } from "../core/native.js";

/** A rank's connection to the run's store. Every promise is rejected with ERR_PEER once a rank has failed. */
export interface NativeStore {
  /** The address of this host, as the other ranks can reach it. */
  readonly localAddress: string;
  set(key: string, value: Uint8Array): Promise<void>;
  get(key: string, timeoutMs: number): Promise<ArrayBuffer>;
  add(key: string, amount: number): Promise<number>;
  barrier(name: string, timeoutMs: number): Promise<void>;
  /** Called once, with the message, when a rank has failed. */
  onFailure(listener: (message: string) => void): void;
  close(): Promise<void>;
}

/** A collective that was enqueued. */
export interface NativeWork {
  wait(): void;
  done(): Promise<void>;
}

/** Moments of a device's streams, on one clock. */
export interface NativeTimeline {
  /** The moment at which the compute stream has run what it was given so far; its number. */
  mark(): number;
  /** Milliseconds from the first moment to each, once all are past; NaN where a failure came first. */
  times(): Float64Array;
  spans(): NativeSpan[];
}

/** A collective, from one moment to another. */
export interface NativeSpan {
  group: string;
  name: CollectiveKind;
  /** Of its larger side. */
  bytes: number;
  /** Whether the compute stream waits for it; otherwise it runs. */
  waiting: boolean;
  start: number;
  end: number;
}

/** What one kind of collective has moved. */
export interface CollectiveStats {
  /** Collectives of this kind so far. */
  calls: number;
  /** Bytes of their tensors on this rank: of the larger side, where input and output differ. */
  bytes: number;
  /** Bytes that this rank sends by the bandwidth-optimal algorithm: what theory says the link carries. */
  sentBytes: number;
}

export type CollectiveKind = "allReduce" | "reduceScatter" | "allGather" | "broadcast" | "barrier";

export interface NativeCommunicator {
  allReduce(tensor: NativeTensor, average: boolean): NativeWork;
  reduceScatter(input: NativeTensor, output: NativeTensor, average: boolean): NativeWork;
  allGather(input: NativeTensor, output: NativeTensor): NativeWork;
  broadcast(tensor: NativeTensor, root: number): NativeWork;
  barrier(): NativeWork;
  stats(): Record<CollectiveKind, CollectiveStats>;
  /** What carries the data: "Gloo 0.5.0 from /path", "NCCL 2.27.3 from /path". */
  readonly backend: string;
  makeTimeline(): NativeTimeline;
  /** From here on collectives and waits for them are in the timeline; null: in none. */
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
