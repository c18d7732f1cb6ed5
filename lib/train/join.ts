/** Connects a process of a run to the others, and makes sure that all do the same work. */
import { createHash } from "node:crypto";
import type { RunConfig } from "../config/index.js";
import { cpu, cuda, type Device, parseDevice } from "../core/device.js";
import { ConfigError } from "../core/errors.js";
import { usableThreads } from "../core/machine-limits.js";
import { cudaInfo, setThreads } from "../core/native.js";
import { Cluster } from "../dist/cluster.js";
import { readWorld, type World } from "../dist/world.js";
import { buildFacts } from "./build-facts.js";

/**
 * The world described by the environment; null for a process that runs alone, and for a run of one
 * process.
 */
export function worldOfRun(): World | null {
  const world = readWorld();
  return world && world.worldSize > 1 ? world : null;
}

/**
 * The device of this process. Among the GPUs that it sees, this is the one with its local rank, or
 * the only one where the launcher shows each process its own.
 * @throws ConfigError if there are fewer GPUs than processes, or the configuration names one GPU
 *   for all of them
 */
export function deviceOfRank(name: string, world: World | null): Device {
  if (name === "cpu") return cpu;
  if (world === null || world.localWorldSize === 1) return parseDevice(name);
  const { localRank, localWorldSize } = world;
  const wrong = (message: string) =>
    new ConfigError("config", [{ path: "device", message: `${message}: rank ${world.rank}` }]);
  if (name !== "cuda") {
    throw wrong(
      `expected cuda, for each of ${localWorldSize} processes takes its own, got ${name}`,
    );
  }
  const { devices } = cudaInfo();
  if (devices.length === 1) return cuda(0);
  if (localRank < devices.length) return cuda(localRank);
  throw wrong(`${localWorldSize} processes on this host, but ${devices.length} GPUs`);
}

/** Whether an environment variable sets the number of threads. */
function threadsAreNamed(): boolean {
  const { LLAMAFORGE_THREADS, OMP_NUM_THREADS } = process.env;
  return Boolean(LLAMAFORGE_THREADS || OMP_NUM_THREADS);
}

/** Divides a host's cores between the processes that share it. */
export function shareThreads({ threads }: Pick<RunConfig, "threads">, world: World | null): void {
  if (threads !== undefined) {
    setThreads(threads);
  } else if (world !== null && world.localWorldSize > 1 && !threadsAreNamed()) {
    setThreads(Math.max(1, Math.floor(usableThreads() / world.localWorldSize)));
  }
}

/** Connects this process to the others with the configuration's strategy. */
export async function joinCluster(
  config: RunConfig,
  world: World,
  device: Device,
): Promise<Cluster> {
  const { parallel, distributed } = config;
  const milliseconds = (seconds: number) => Math.ceil(seconds * 1000);
  return await Cluster.connect(world, {
    device,
    strategy: parallel,
    reduce: distributed.reduce,
    timeoutMs: milliseconds(distributed.timeoutSeconds),
    startTimeoutMs: milliseconds(distributed.startTimeoutSeconds),
    shardSize: distributed.shardSize,
  });
}

/**
 * Facts that must be equal on all ranks: every option, the program, the data. Each difference would
 * be a different run (FAULTS P3).
 */
export function factsOf(
  config: RunConfig,
  device: Device,
  fingerprints: Readonly<Record<string, string>>,
): Record<string, string> {
  const facts: Record<string, string> = {};
  const add = (path: string, value: unknown): void => {
    if (typeof value === "object" && value !== null && !Array.isArray(value)) {
      for (const [key, inner] of Object.entries(value)) add(path ? `${path}.${key}` : key, inner);
    } else {
      facts[path] = shorten(JSON.stringify(value) ?? "");
    }
  };
  add("", config);
  return { ...facts, ...buildFacts(device), ...fingerprints };
}

function shorten(text: string): string {
  if (text.length <= 200) return text;
  return `${text.slice(0, 100)}... (${createHash("sha256").update(text).digest("hex").slice(0, 16)})`;
}
