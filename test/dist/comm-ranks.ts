/**
 * Runs a job of comm-rank.mjs as several real processes: on the CPU, or on one GPU with
 * LLAMAFORGE_TEST_DEVICE=cuda:0.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { freePort } from "../../lib/dist/free-port.js";
import { root } from "../cli/build.js";

export const device = process.env.LLAMAFORGE_TEST_DEVICE ?? "cpu";

export interface RankResult {
  code: number | null;
  signal: NodeJS.Signals | null;
  /** The rank's results: one value per line of its output. */
  // biome-ignore lint/suspicious/noExplicitAny: each job has its own results
  said: any[];
  stderr: string;
}

export interface Rank {
  child: ChildProcess;
  /** Resolves when the rank has printed a value that passes `test`. */
  says(test: (value: unknown) => boolean): Promise<void>;
  ended: Promise<RankResult>;
}

/** The ranks that still run. */
const alive = new Set<ChildProcess>();

/** Ends all ranks, also after a failed test. */
export function endRanks(): void {
  for (const child of alive) child.kill("SIGKILL");
}

export interface StartOptions {
  /** The `options` of comm-rank.mjs. */
  options?: Record<string, unknown>;
  port?: number;
  /** Ranks to start; all of them if left out. */
  ranks?: readonly number[];
  token?: string;
  /** A world size that the ranks are told, if it differs from the real one. */
  believedWorldSize?: number;
  environment?: Record<string, string>;
}

/**
 * Variables for ranks that share the GPU of the tests: NCCL takes them for ranks of several hosts.
 */
export function sharedGpu(rank: number | string): Record<string, string> {
  if (device === "cpu") return {};
  const { CUDA_VISIBLE_DEVICES = device.replace(/^cuda:?/, "") || "0" } = process.env;
  return { CUDA_VISIBLE_DEVICES, NCCL_HOSTID: `rank-${rank}`, LLAMAFORGE_GEMM: "first" };
}

/**
 * As above for ranks of a launcher, which have one environment: each rank names its own host at the
 * start.
 */
export function sharedGpuOfLaunch(): Record<string, string> {
  if (device === "cpu") return {};
  const name = "process.env.NCCL_HOSTID='rank-'+process.env.RANK";
  return { ...sharedGpu(0), NODE_OPTIONS: `--import=data:text/javascript,${name}` };
}

function startRank(job: string, rank: number, environment: Record<string, string>): Rank {
  const child = spawn(process.execPath, [`${root}/test/dist/comm-rank.mjs`, job], {
    stdio: ["ignore", "pipe", "pipe"],
    env: {
      ...process.env,
      RANK: String(rank),
      LLAMAFORGE_THREADS: "1",
      ...sharedGpu(rank),
      ...environment,
    },
  });
  alive.add(child);
  const said: unknown[] = [];
  const waiting = new Set<() => void>();
  let rest = "";
  let stderr = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    const lines = (rest + text).split("\n");
    rest = lines.pop() as string;
    for (const line of lines) said.push(JSON.parse(line));
    for (const check of waiting) check();
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  const ended = new Promise<RankResult>((resolve) => {
    child.on("close", (code, signal) => {
      alive.delete(child);
      resolve({ code, signal, said, stderr });
    });
  });
  const says = (test: (value: unknown) => boolean) =>
    new Promise<void>((resolve, reject) => {
      const check = () => {
        if (!said.some(test)) return;
        waiting.delete(check);
        resolve();
      };
      waiting.add(check);
      void ended.then(() => reject(new Error(`rank ${rank} ended: ${stderr}`)));
      check();
    });
  return { child, says, ended };
}

export async function startRanks(
  job: string,
  worldSize: number,
  { options = {}, port, ranks, token = "one run", believedWorldSize, ...more }: StartOptions = {},
): Promise<Rank[]> {
  const environment = {
    ...more.environment,
    WORLD_SIZE: String(believedWorldSize ?? worldSize),
    MASTER_PORT: String(port ?? (await freePort())),
    TOKEN: token,
    OPTIONS: JSON.stringify({ device, ...options }),
  };
  const all = ranks ?? Array.from({ length: worldSize }, (_, rank) => rank);
  return all.map((rank) => startRank(job, rank, environment));
}

/** One rank. */
export async function startOne(
  job: string,
  worldSize: number,
  rank: number,
  options: StartOptions = {},
): Promise<Rank> {
  const [only] = await startRanks(job, worldSize, { ...options, ranks: [rank] });
  return only as Rank;
}

export async function runRanks(
  job: string,
  worldSize: number,
  options: StartOptions = {},
): Promise<RankResult[]> {
  const ranks = await startRanks(job, worldSize, options);
  return Promise.all(ranks.map(({ ended }) => ended));
}
