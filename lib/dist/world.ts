import { createHash } from "node:crypto";
import { isIP } from "node:net";
import { checkInteger, checkObject, checkString } from "../core/check-values.js";
import { ConfigError, type ConfigProblem } from "../core/errors.js";

/** Programs that start ranks and are recognised by their variables. */
export type Launcher = "torchrun" | "Slurm" | "Open MPI";

/** This process among those of a run. */
export interface World {
  /** 0 to worldSize - 1. */
  readonly rank: number;
  readonly worldSize: number;
  /** Rank among the processes of this host, which decides the GPU it takes. */
  readonly localRank: number;
  /** Number of processes on this host. */
  readonly localWorldSize: number;
  /** Host on which rank 0 serves the run's store. */
  readonly host: string;
  readonly port: number;
  /** Name of the run: equal on all its processes, and different in every other run. */
  readonly runId: string;
  /** Launcher whose variables described the run. */
  readonly launcher: Launcher;
}

/** Variables of a process. */
export type WorldVariables = Readonly<Record<string, string | undefined>>;

/** A launcher's names for the four numbers. The first variable that is set counts. */
interface Names {
  launcher: Launcher;
  rank: string;
  worldSize: string;
  localRank: string;
  localWorldSize: readonly string[];
  runId: readonly string[];
}

const families: readonly Names[] = [
  {
    launcher: "torchrun",
    rank: "RANK",
    worldSize: "WORLD_SIZE",
    localRank: "LOCAL_RANK",
    localWorldSize: ["LOCAL_WORLD_SIZE"],
    runId: ["TORCHELASTIC_RUN_ID"],
  },
  {
    launcher: "Open MPI",
    rank: "OMPI_COMM_WORLD_RANK",
    worldSize: "OMPI_COMM_WORLD_SIZE",
    localRank: "OMPI_COMM_WORLD_LOCAL_RANK",
    localWorldSize: ["OMPI_COMM_WORLD_LOCAL_SIZE"],
    runId: ["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"],
  },
  {
    launcher: "Slurm",
    rank: "SLURM_PROCID",
    worldSize: "SLURM_NTASKS",
    localRank: "SLURM_LOCALID",
    // The step's own variable comes first. The second one holds the allocation's request, which
    // steps inherit.
    localWorldSize: ["SLURM_STEP_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE"],
    runId: ["SLURM_JOB_ID"],
  },
];

/** Default port of the store, the same as torchrun's. */
const defaultPort = 29_500;
/** Variable that sets the store's port on all ranks and overrides the launcher. */
const portVariable = "LLAMAFORGE_MASTER_PORT";
/**
 * Systems assign ports from here on to outgoing connections (Linux: net.ipv4.ip_local_port_range).
 */
const firstHandedOut = 32_768;
const mostProcesses = 65_536;

/**
 * Reads the variables of torchrun, of `mpirun`, or of a Slurm step. This is the order in which jobs
 * nest.
 * @returns null for a process that runs alone
 * @throws ConfigError with every variable that is missing, wrong or contradictory
 */
export function readWorld(env: WorldVariables = process.env): World | null {
  checkObject("readWorld", "env", env, "an object of environment variables");
  for (const [name, value] of Object.entries(env)) {
    if (value !== undefined) checkString("readWorld", `env.${name}`, value);
  }
  const names = families.find((family) => stands(family, env));
  if (!names) return null;
  const problems: ConfigProblem[] = [];
  const { launcher } = names;
  const worldSize = integer(env, [names.worldSize], 1, mostProcesses, problems);
  const rank = integer(env, [names.rank], 0, mostProcesses - 1, problems);
  const localWorldSize = localSize(env, names, worldSize, problems);
  const localRank = localNumber(env, names, { rank, worldSize }, problems);
  below(names.rank, rank, names.worldSize, worldSize, problems);
  const localName = names.localWorldSize.find((name) => isSet(env, name)) ?? names.worldSize;
  below(names.localRank, localRank, localName, localWorldSize, problems);
  if (worldSize !== undefined && localWorldSize !== undefined && localWorldSize > worldSize) {
    const message = `${localWorldSize} processes on this host are more than ${names.worldSize}=${worldSize} in all`;
    problems.push({ path: localName, message });
  }
  const host = masterAddress(env, names, { worldSize, localWorldSize }, problems);
  const port = masterPort(env, names, problems);
  const wrong =
    rank === undefined ||
    worldSize === undefined ||
    localRank === undefined ||
    localWorldSize === undefined;
  if (wrong || problems.length > 0) {
    throw new ConfigError(`the environment (${launcher}'s variables)`, problems);
  }
  const named = runName(env, names) ?? "run";
  const step = launcher === "Slurm" ? `.${env.SLURM_STEP_ID ?? ""}` : "";
  const restart = env.TORCHELASTIC_RESTART_COUNT ?? env.SLURM_RESTART_COUNT ?? "0";
  return {
    rank,
    worldSize,
    localRank,
    localWorldSize,
    host,
    port,
    runId: `${named}${step}#${restart}`.slice(-256),
    launcher,
  };
}

/**
 * Whether a launcher's variables apply. A Slurm allocation also sets its variables in the batch
 * script, where no task runs, so only those of a step of tasks count.
 */
function stands(family: Names, env: WorldVariables): boolean {
  if (family.launcher === "torchrun") {
    return ["RANK", "WORLD_SIZE", "LOCAL_RANK"].some((name) => isSet(env, name));
  }
  if (!isSet(env, family.rank)) return false;
  return family.launcher !== "Slurm" || isTaskStep(env.SLURM_STEP_ID ?? "");
}

/**
 * Whether a Slurm step was started by srun, which numbers its steps from 0. Slurm's own steps have
 * names, or numbers near 2^32: 0xFFFFFFFB is the batch script, 0xFFFFFFFA the shell of salloc.
 */
function isTaskStep(step: string): boolean {
  return /^\d+$/.test(step) && Number(step) < 0xffff_fff0;
}

function isSet(env: WorldVariables, name: string): boolean {
  return env[name] !== undefined && env[name] !== "";
}

function integer(
  env: WorldVariables,
  names: readonly string[],
  least: number,
  most: number,
  problems: ConfigProblem[],
): number | undefined {
  const name = names.find((candidate) => isSet(env, candidate)) ?? (names[0] as string);
  const text = env[name];
  const expected = `expected an integer from ${least} to ${most}`;
  if (text === undefined || text === "") {
    problems.push({ path: name, message: `missing: ${expected}` });
    return undefined;
  }
  const value = /^\d{1,9}$/.test(text) ? Number(text) : Number.NaN;
  if (value >= least && value <= most) return value;
  problems.push({ path: name, message: `${expected}, got ${JSON.stringify(text)}` });
  return undefined;
}

function below(
  name: string,
  value: number | undefined,
  limitName: string,
  limit: number | undefined,
  problems: ConfigProblem[],
): void {
  if (value === undefined || limit === undefined || value < limit) return;
  problems.push({ path: name, message: `expected below ${limitName}=${limit}, got ${value}` });
}

/**
 * Number of this host's tasks. Slurm writes `4(x2),3` for two hosts with four tasks and one with
 * three, indexed by SLURM_NODEID.
 */
function localSize(
  env: WorldVariables,
  names: Names,
  worldSize: number | undefined,
  problems: ConfigProblem[],
): number | undefined {
  const name = names.localWorldSize.find((candidate) => isSet(env, candidate));
  if (name === undefined) {
    // A process started by hand with only RANK and WORLD_SIZE is on a host of its own or on the
    // only host.
    if (!isSet(env, names.localRank)) return 1;
    return worldSize;
  }
  if (names.launcher !== "Slurm") return integer(env, [name], 1, mostProcesses, problems);
  const node = Number(env.SLURM_NODEID ?? 0);
  const counts = (env[name] as string).split(",").flatMap((item) => {
    const parts = /^(\d{1,6})(?:\(x(\d{1,6})\))?$/.exec(item.trim());
    return parts ? Array<number>(Number(parts[2] ?? 1)).fill(Number(parts[1])) : [Number.NaN];
  });
  const count = counts[node] ?? (counts.length === 1 ? counts[0] : undefined);
  if (count !== undefined && count >= 1) return count;
  problems.push({
    path: name,
    message: `expected tasks per node like 8(x2), with one for SLURM_NODEID=${node}, got ${JSON.stringify(env[name])}`,
  });
  return undefined;
}

function localNumber(
  env: WorldVariables,
  names: Names,
  { rank, worldSize }: { rank: number | undefined; worldSize: number | undefined },
  problems: ConfigProblem[],
): number | undefined {
  if (isSet(env, names.localRank) || worldSize === 1) {
    return isSet(env, names.localRank)
      ? integer(env, [names.localRank], 0, mostProcesses - 1, problems)
      : 0;
  }
  if (names.localWorldSize.some((name) => isSet(env, name))) {
    return integer(env, [names.localRank], 0, mostProcesses - 1, problems);
  }
  return rank === undefined ? undefined : 0;
}

function masterAddress(
  env: WorldVariables,
  names: Names,
  sizes: { worldSize: number | undefined; localWorldSize: number | undefined },
  problems: ConfigProblem[],
): string {
  const { MASTER_ADDR: given } = env;
  if (isSet(env, "MASTER_ADDR")) {
    const host = given as string;
    if (isIP(host) || /^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9.])?$/.test(host)) return host;
    const message = `expected a host name or an address, got ${JSON.stringify(given)}`;
    problems.push({ path: "MASTER_ADDR", message });
    return "";
  }
  if (names.launcher === "Slurm") {
    const list = env.SLURM_STEP_NODELIST || env.SLURM_NODELIST || env.SLURM_JOB_NODELIST;
    const first = list && firstHost(list);
    if (first) return first;
  }
  const { worldSize, localWorldSize } = sizes;
  if (worldSize !== undefined && worldSize === localWorldSize) return "127.0.0.1";
  problems.push({
    path: "MASTER_ADDR",
    message: "missing: expected the name or address of the host of rank 0",
  });
  return "";
}

/** The first host of Slurm's notation: `node[003-010,012],login` is node003, `rack[1-2]n[01-04]` rack1n01. */
export function firstHost(list: string): string | undefined {
  const first = /^((?:[A-Za-z0-9._-]|\[\d[^\]]*\])+)(?:,|$)/.exec(list.trim())?.[1];
  return first?.replace(/\[(\d+)[^\]]*\]/g, "$1");
}

function masterPort(env: WorldVariables, names: Names, problems: ConfigProblem[]): number {
  if (isSet(env, portVariable)) return integer(env, [portVariable], 1, 65_535, problems) ?? 0;
  if (isSet(env, "MASTER_PORT")) {
    const port = integer(env, ["MASTER_PORT"], 1, 65_535, problems) ?? 0;
    return env.TORCHELASTIC_USE_AGENT_STORE === "True" ? portBesideAgent(port) : port;
  }
  if (names.launcher === "torchrun") return defaultPort;
  // Jobs that share a host must not share a port.
  const run = runName(env, names) ?? "";
  return portOfNumber(names.launcher === "Slurm" ? Number(/\d+/.exec(run)?.[0] ?? 0) : hashOf(run));
}

/** The launcher's name for the run. */
function runName(env: WorldVariables, names: Names): string | undefined {
  const name = names.runId.find((each) => isSet(env, each));
  return name === undefined ? undefined : env[name];
}

/**
 * The store's port next to a torchrun agent. The agent serves a store of its own on MASTER_PORT
 * while the ranks run, for workers that speak its protocol, so this store takes the next port. But
 * where the system has chosen the agent's port (c10d), it hands out the following ones to
 * connections, and another range is used.
 */
function portBesideAgent(port: number): number {
  return port < firstHandedOut ? port + 1 : portOfNumber(port);
}

/** A port in 20000..29999. */
function portOfNumber(number: number): number {
  return 20_000 + (number % 10_000);
}

function hashOf(text: string): number {
  return createHash("sha256").update(text).digest().readUInt32LE();
}

/** @throws ArgumentError unless the value has the form of `readWorld`'s result */
export function checkWorld(op: string, value: unknown): asserts value is World {
  checkObject(op, "world", value, "a world (readWorld gives it)");
  const { rank, worldSize, localRank, localWorldSize, host, port, runId } = value as Partial<World>;
  checkInteger(op, "world.worldSize", worldSize, { min: 1, max: mostProcesses });
  checkInteger(op, "world.rank", rank, { min: 0, max: worldSize - 1 });
  checkInteger(op, "world.localWorldSize", localWorldSize, { min: 1, max: worldSize });
  checkInteger(op, "world.localRank", localRank, { min: 0, max: localWorldSize - 1 });
  checkString(op, "world.host", host);
  checkInteger(op, "world.port", port, { min: 1, max: 65_535 });
  checkString(op, "world.runId", runId);
}

/** Describes a process: `rank 3 of 16 (local 1 of 8)`. */
export function describeWorld(world: World): string {
  checkWorld("describeWorld", world);
  const { rank, worldSize, localRank, localWorldSize } = world;
  return `rank ${rank} of ${worldSize} (local ${localRank} of ${localWorldSize})`;
}
