import {
  checkChoice,
  checkDevice,
  checkInteger,
  checkMade,
  checkObject,
  checkOptions,
} from "../core/check.js";
import { empty, tensor } from "../core/create.js";
import type { Device } from "../core/device.js";
import { ConfigError, type ConfigProblem, UsageError } from "../core/errors.js";
import { scope } from "../core/scope.js";
import type { ParallelStrategy } from "../nn/parallel.js";
import { Communicator } from "./communicator.js";
import type { ReduceDType } from "./exchange.js";
import { FullShard } from "./full-shard.js";
import { Replicated } from "./replicated.js";
import { Store } from "./store.js";
import { type StrategyName, strategyNames } from "./strategy.js";
import { TimedStrategy } from "./timed-strategy.js";
import { type Timeline, TimelineRecorder } from "./timeline.js";
import { checkWorld, type World } from "./world.js";
import { Zero1 } from "./zero1.js";

/** Options of a process for the group that it joins. */
export interface ClusterOptions {
  device: Device;
  strategy: StrategyName;
  /** Dtype in which gradients are summed. */
  reduce: ReduceDType;
  /** Time limit of a collective, in milliseconds. */
  timeoutMs: number;
  /** Time that the ranks wait for each other before the first step, in milliseconds. */
  startTimeoutMs: number;
  /**
   * Number of ranks that share one copy of the model in hybrid_shard. Default: the ranks of a host.
   */
  shardSize?: number | undefined;
}

const clusterOptionNames = [
  "device",
  "strategy",
  "reduce",
  "timeoutMs",
  "startTimeoutMs",
  "shardSize",
];

/**
 * Timeout of waits that only the loss of a rank should end, in milliseconds: rank 0 may be writing
 * a checkpoint to slow storage meanwhile.
 */
const patientMs = 2 ** 31 - 1;

function checkClusterOptions(options: ClusterOptions): void {
  const op = "Cluster";
  const longest = 2 ** 31 - 1;
  checkObject(op, "options", options);
  checkOptions(op, options, clusterOptionNames);
  checkDevice(op, "device", options.device);
  checkChoice(op, "strategy", options.strategy, strategyNames);
  checkChoice(op, "reduce", options.reduce, ["fp32", "bf16"]);
  checkInteger(op, "timeoutMs", options.timeoutMs, { min: 1, max: longest });
  checkInteger(op, "startTimeoutMs", options.startTimeoutMs, { min: 1, max: longest });
  if (options.shardSize !== undefined) checkInteger(op, "shardSize", options.shardSize, { min: 1 });
}

/**
 * The connected processes of a run, with everything that a strategy and a trainer need for
 * communication between ranks.
 */
export class Cluster {
  readonly world: World;
  readonly strategy: ParallelStrategy;
  readonly #timed: TimedStrategy;
  /** Library that carries the data. */
  readonly backend: string;
  readonly #store: Store;
  readonly #comms: readonly Communicator[];
  readonly #startTimeoutMs: number;
  #closed = false;

  private constructor(
    world: World,
    store: Store,
    comms: readonly Communicator[],
    strategy: ParallelStrategy,
    startTimeoutMs: number,
  ) {
    checkMade("Cluster", "Cluster.connect()", Array.isArray(comms) && comms.length > 0);
    this.world = world;
    this.strategy = this.#timed = new TimedStrategy(strategy);
    this.backend = (comms[0] as Communicator).backend;
    this.#store = store;
    this.#comms = comms;
    this.#startTimeoutMs = startTimeoutMs;
  }

  /**
   * Connects to the other ranks and prepares the training strategy.
   * @throws PeerError if not all ranks come in time
   * @throws ConfigError if the strategy does not fit the number of ranks
   */
  static async connect(world: World, options: ClusterOptions): Promise<Cluster> {
    checkWorld("Cluster", world);
    checkClusterOptions(options);
    const { rank, worldSize, localWorldSize, host, port, runId } = world;
    const { device, timeoutMs, startTimeoutMs, strategy } = options;
    const groups = strategy === "hybrid_shard" ? hybridGroups(world, options.shardSize) : null;
    const store = await Store.connect({
      host,
      port,
      rank,
      worldSize,
      token: runId,
      timeoutMs: startTimeoutMs,
      oneHost: localWorldSize === worldSize,
    });
    const comms: Communicator[] = [];
    const connect = async (name: string, ranks: readonly number[]): Promise<Communicator> => {
      const comm = await Communicator.create({
        store,
        device,
        name,
        ranks,
        rank,
        timeoutMs,
        startTimeoutMs,
      });
      comms.push(comm);
      return comm;
    };
    const all = await connect(
      "world",
      Array.from({ length: worldSize }, (_, i) => i),
    );
    const shared = { world: all, reduce: options.reduce };
    const make = async (): Promise<ParallelStrategy> => {
      if (strategy === "replicated") return new Replicated(shared);
      if (strategy === "zero1") return new Zero1(shared);
      if (groups === null) return new FullShard(shared);
      const shard = await connect(`shard ${groups.shard[0]}`, groups.shard);
      const replica = await connect(`replica ${groups.replica[0]}`, groups.replica);
      return new FullShard({ ...shared, shard, replica });
    };
    return new Cluster(world, store, comms, await make(), startTimeoutMs);
  }

  /**
   * Compares facts about the run between the ranks.
   * @param name name of this comparison, used only once in a run
   * @param facts facts that are equal on all ranks if these do the same work
   * @throws ConfigError naming each fact and rank that differs from rank 0
   */
  async compare(name: string, facts: Readonly<Record<string, string>>): Promise<void> {
    const { rank, worldSize } = this.world;
    const timeoutMs = this.#startTimeoutMs;
    await this.#store.set(`${name} of ${rank}`, JSON.stringify(facts));
    if (rank === 0) {
      const problems: ConfigProblem[] = [];
      for (let other = 1; other < worldSize; other++) {
        const bytes = await this.#store.get(`${name} of ${other}`, { timeoutMs });
        problems.push(...differences(facts, JSON.parse(Buffer.from(bytes).toString()), other));
      }
      await this.#store.set(`verdict on ${name}`, JSON.stringify(problems));
    }
    const verdict = await this.#store.get(`verdict on ${name}`, { timeoutMs });
    const problems = JSON.parse(Buffer.from(verdict).toString()) as ConfigProblem[];
    if (problems.length === 0) return;
    // All ranks know of the difference, so none has to be told of a failure.
    await this.#store.barrier(`verdict on ${name} read`, { timeoutMs });
    await this.close();
    throw new ConfigError("the ranks of this run are not set up alike", problems);
  }

  /** Distributes rank 0's text under a name to every rank. */
  async fromFirst(name: string, say: () => Promise<string>): Promise<string> {
    if (this.world.rank === 0) {
      const value = await say();
      await this.#store.set(name, value);
      return value;
    }
    const value = await this.#store.get(name, { timeoutMs: this.#startTimeoutMs });
    return Buffer.from(value).toString();
  }

  /**
   * Numbers of every rank, bit for bit, in the order of ranks.
   * @param values of one length on all ranks, at least 1
   */
  async gatherNumbers(values: Float64Array): Promise<Float64Array[]> {
    const { worldSize } = this.world;
    const [all] = this.#comms as [Communicator];
    return await scope(async () => {
      // Collectives move bits, and i32 is the dtype that no conversion touches.
      const words = new Int32Array(values.slice().buffer);
      const input = tensor(words, { device: all.device });
      const output = empty([worldSize * words.length], { dtype: "i32", device: all.device });
      all.allGather(input, output).wait();
      const gathered = new Float64Array(await output.toBytes());
      return Array.from({ length: worldSize }, (_, rank) =>
        gathered.slice(rank * values.length, (rank + 1) * values.length),
      );
    });
  }

  /**
   * Resolves when all ranks have arrived, however long that takes. @throws PeerError if a rank is
   * lost
   */
  meet(name: string): Promise<void> {
    return this.#store.barrier(name, { timeoutMs: patientMs });
  }

  /**
   * Bytes that this rank has sent so far, counted for the bandwidth-optimal algorithms; see
   * `CollectiveStats`.
   */
  get sentBytes(): number {
    return this.#comms
      .flatMap((comm) => Object.values(comm.stats))
      .reduce((sum, { sentBytes }) => sum + sentBytes, 0);
  }

  /**
   * Starts to record the activity of this process's device, until `endTimeline`. All ranks record
   * the same steps. `betweenSteps` on the result marks the border between two steps; it must be
   * called at least twice.
   */
  beginTimeline(): {
    /** Marks the border between two steps. */
    betweenSteps: () => void;
  } {
    const recorder = new TimelineRecorder(this.world.rank, this.#comms);
    this.#timed.recorder = recorder;
    return { betweenSteps: () => recorder.boundary() };
  }

  /** The whole steps recorded since `beginTimeline`. Waits until the device has run them. */
  async endTimeline(): Promise<Timeline> {
    const { recorder } = this.#timed;
    if (!recorder) throw new UsageError("[Cluster.endTimeline] no timeline was begun");
    this.#timed.recorder = null;
    return await recorder.end();
  }

  /** Disconnects in agreement with the other ranks. */
  async close(): Promise<void> {
    this.#closed = true;
    for (const comm of this.#comms) await comm.close();
    await this.#store.close();
  }

  /**
   * Disconnects because of an error. The other ranks end with a PeerError that contains its
   * message.
   */
  fail(error: Error): void {
    if (!this.#closed) this.#comms[0]?.abort(error.message.split("\n")[0]);
  }
}

function differences(
  mine: Readonly<Record<string, string>>,
  theirs: Readonly<Record<string, string>>,
  rank: number,
): ConfigProblem[] {
  return [...new Set([...Object.keys(mine), ...Object.keys(theirs)])]
    .filter((fact) => mine[fact] !== theirs[fact])
    .map((fact) => ({
      path: fact,
      message: `rank ${rank} has ${theirs[fact] ?? "none"}, rank 0 ${mine[fact] ?? "none"}`,
    }));
}

/**
 * The ranks that share this rank's copy of the model, and the ranks that hold the same part in
 * other copies.
 */
export function hybridGroups(
  { rank, worldSize, localRank, localWorldSize }: World,
  shardSize: number | undefined,
): { shard: number[]; replica: number[] } {
  const size = shardSize ?? localWorldSize;
  const path = shardSize === undefined ? "parallel" : "distributed.shardSize";
  if (worldSize % size !== 0) {
    const message = `hybrid_shard needs copies of one size: ${size} ranks do not divide the ${worldSize} of this run`;
    throw new ConfigError("config", [{ path, message }]);
  }
  if (shardSize === undefined && rank % localWorldSize !== localRank) {
    const message =
      `hybrid_shard needs the ranks of a host one after the other: rank ${rank} is local rank ${localRank} of ` +
      `${localWorldSize} (Slurm: --distribution=block)`;
    throw new ConfigError("config", [{ path, message }]);
  }
  const first = rank - (rank % size);
  return {
    shard: Array.from({ length: size }, (_, i) => first + i),
    replica: Array.from({ length: worldSize / size }, (_, i) => (rank % size) + i * size),
  };
}
