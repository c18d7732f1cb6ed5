import {
  checkFunction,
  checkInteger,
  checkMade,
  checkObject,
  checkOptions,
  checkString,
  describe,
} from "../core/check.js";
import { ArgumentError, PeerError } from "../core/errors.js";
import { type NativeStore, nativeComm, typed } from "./native-comm.js";

/** Address of a run's store, and this process's identity in the run. */
export interface RendezvousOptions {
  /** MASTER_ADDR: name or address of rank 0's host. */
  host: string;
  /** MASTER_PORT, 1 to 65535: the port on which rank 0 serves. */
  port: number;
  /** Rank of this process among all of the run, from 0 on. */
  rank: number;
  worldSize: number;
  /** Name of the run, at most 256 bytes. A process with another name is refused. */
  token: string;
  /**
   * Time to wait for all ranks to connect, and the default of every later wait, in milliseconds.
   */
  timeoutMs: number;
  /**
   * Whether all ranks are on this host. If so, a host name that resolves to the loopback interface
   * is served on that interface alone. Default: false.
   */
  oneHost?: boolean;
}

const optionNames = ["host", "port", "rank", "worldSize", "token", "timeoutMs", "oneHost"];
const longestMs = 2 ** 31 - 1;

/**
 * A small key-value store that rank 0 serves and every rank connects to, for ids, hashes and
 * barriers at the start of a run. The connections also reveal the death of a rank: every pending
 * and later call then rejects with the PeerError that names it. Two seconds after that, a native
 * thread ends every process that is still alive and has not closed its store, with exit code 6,
 * whatever its JavaScript is doing.
 */
export class Store {
  readonly rank: number;
  readonly worldSize: number;
  /**
   * Address of this host at which the other ranks can reach it: the one from which it connected to
   * the store.
   */
  readonly localAddress: string;
  /** @internal */
  readonly native: NativeStore;
  readonly #timeoutMs: number;
  readonly #listeners = new Set<(error: PeerError) => void>();
  #failure: PeerError | undefined;

  private constructor(native: NativeStore, options: RendezvousOptions) {
    checkMade("Store", "Store.connect()", Number.isInteger(options?.rank));
    this.native = native;
    this.rank = options.rank;
    this.worldSize = options.worldSize;
    this.localAddress = native.localAddress;
    this.#timeoutMs = options.timeoutMs;
    native.onFailure((message) => {
      this.#failure = new PeerError(message);
      for (const listener of this.#listeners) listener(this.#failure);
    });
  }

  /**
   * Connects this rank; rank 0 serves. Resolves when every rank has connected.
   * @throws PeerError if not all ranks connect in time (it names the missing ones and other
   *   processes that tried), the port is taken, something else answers there, or the store refuses
   *   this rank: another run's token, another version, or a rank that is already connected
   */
  static async connect(options: RendezvousOptions): Promise<Store> {
    checkObject("store", "options", options);
    checkOptions("store", options, optionNames);
    const { host, port, rank, worldSize, token, timeoutMs, oneHost = false } = options;
    const wrong: string[] = [];
    const expect = (holds: boolean, what: string, value: unknown): void => {
      if (!holds) wrong.push(`${what}, got ${describe(value)}`);
    };
    const whole = (value: unknown, least: number, most: number) =>
      Number.isInteger(value) && (value as number) >= least && (value as number) <= most;
    expect(whole(port, 1, 65_535), "a port from 1 to 65535", port);
    const sized = whole(worldSize, 1, 65_536);
    expect(sized, "a world size from 1 to 65536", worldSize);
    const most = sized ? worldSize - 1 : 65_535;
    expect(whole(rank, 0, most), `a rank from 0 to ${most}`, rank);
    expect(whole(timeoutMs, 1, longestMs), "a timeout of at least 1 ms", timeoutMs);
    const short = typeof token === "string" && Buffer.byteLength(token) <= 256;
    expect(short, "a token of at most 256 bytes", token);
    const named = typeof host === "string" && host !== "" && !host.includes("\0");
    expect(named, "a host name or address", host);
    expect(typeof oneHost === "boolean", "true or false for oneHost", oneHost);
    if (wrong.length > 0) throw new ArgumentError(`[store] expected ${wrong.join("; ")}`);
    const native = await nativeComm.connectStore(
      host,
      port,
      rank,
      worldSize,
      token,
      timeoutMs,
      oneHost,
    );
    return new Store(native, options);
  }

  /** The failure of a rank that ended this store, if there was one. */
  get failure(): PeerError | undefined {
    return this.#failure;
  }

  /**
   * Calls `listener` once when a rank fails, or at once if one has failed. Returns a function that
   * unsubscribes.
   */
  onFailure(listener: (error: PeerError) => void): () => void {
    checkFunction("store", "listener", listener);
    this.#listeners.add(listener);
    if (this.#failure) listener(this.#failure);
    return () => this.#listeners.delete(listener);
  }

  /**
   * Sets a key, replacing its value.
   * @param key at most 1024 bytes
   * @param value at most 16 MiB; a string is stored as UTF-8
   */
  set(key: string, value: Uint8Array | string): Promise<void> {
    checkString("store", "key", key);
    const bytes = typeof value === "string" ? Buffer.from(value) : value;
    return typed(() => this.native.set(key, bytes));
  }

  /**
   * Reads the value of a key. Waits until some rank has set it.
   * @throws PeerError after timeoutMs, by default that of the store
   */
  async get(key: string, options: { timeoutMs?: number } = {}): Promise<Uint8Array> {
    const timeoutMs = this.#timeout(options);
    return new Uint8Array(await typed(() => this.native.get(key, timeoutMs)));
  }

  /**
   * Adds a whole number to a counter, which starts at 0, and returns the sum. Counters and keys of
   * `set` have separate names.
   */
  add(key: string, amount: number): Promise<number> {
    return typed(() => this.native.add(key, amount));
  }

  /**
   * Resolves when every rank has called it with this name. The name may be used again afterwards.
   * @throws PeerError after the store's timeout, naming the missing ranks
   */
  barrier(name: string, options: { timeoutMs?: number } = {}): Promise<void> {
    const timeoutMs = this.#timeout(options);
    return typed(() => this.native.barrier(name, timeoutMs));
  }

  #timeout(options: { timeoutMs?: number }): number {
    checkOptions("store", options, ["timeoutMs"]);
    const { timeoutMs = this.#timeoutMs } = options;
    checkInteger("store", "timeoutMs", timeoutMs, { min: 1, max: longestMs });
    return timeoutMs;
  }

  /**
   * Disconnects in order. A rank that ends without it counts as dead. Rank 0 waits up to 5 s for
   * the others to leave.
   */
  close(): Promise<void> {
    return typed(() => this.native.close());
  }
}
