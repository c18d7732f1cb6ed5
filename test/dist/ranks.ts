import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { stringify } from "yaml";
import { freePort } from "../../lib/dist/free-port.js";
import { readMetrics, type StepMetrics } from "../../lib/train/metrics.js";
import { root } from "../cli/build.js";
import { cliFile } from "../cli/run.js";
import { device, sharedGpu } from "./comm-ranks.js";

export interface RankResult {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

/** A process of a run. */
export interface RankProcess {
  child: ChildProcess;
  ended: Promise<RankResult>;
  output: { stdout: string; stderr: string };
}

export function startRank(
  args: readonly string[],
  env: Readonly<Record<string, string>>,
  command: readonly string[] = [],
  cli = cliFile,
): RankProcess {
  const [program, ...before] = [...command, process.execPath];
  const child = spawn(program as string, [...before, cli, ...args], {
    cwd: root,
    env: { ...process.env, LLAMAFORGE_THREADS: "1", ...sharedGpu(env.RANK ?? 0), ...env },
  });
  const output = { stdout: "", stderr: "" };
  child.stdout.on("data", (chunk: Buffer) => {
    output.stdout += chunk;
  });
  child.stderr.on("data", (chunk: Buffer) => {
    output.stderr += chunk;
  });
  const ended = once(child, "close").then(([code, signal]) => ({ code, signal, ...output }));
  return { child, ended: ended as Promise<RankResult>, output };
}

/** The variables that torchrun sets for a rank. */
export function torchrun(
  rank: number,
  worldSize: number,
  port: number,
  perHost = worldSize,
): Record<string, string> {
  return {
    RANK: `${rank}`,
    WORLD_SIZE: `${worldSize}`,
    LOCAL_RANK: `${rank % perHost}`,
    LOCAL_WORLD_SIZE: `${perHost}`,
    MASTER_ADDR: "127.0.0.1",
    MASTER_PORT: `${port}`,
    TORCHELASTIC_RUN_ID: `test-${port}`,
  };
}

export interface RunOptions {
  worldSize: number;
  /** Processes that share a "host". */
  perHost?: number;
  env?: (rank: number) => Record<string, string>;
  args?: (rank: number) => string[];
}

/** All ranks of `llamaforge train CONFIG`. */
export async function startRun(config: string, options: RunOptions): Promise<RankProcess[]> {
  const { worldSize, perHost = worldSize, env = () => ({}), args = () => [] } = options;
  const port = await freePort();
  return Array.from({ length: worldSize }, (_, rank) => {
    const own = worldSize === 1 ? {} : torchrun(rank, worldSize, port, perHost);
    return startRank(["train", config, ...args(rank)], { ...own, ...env(rank) });
  });
}

export async function runToEnd(config: string, options: RunOptions): Promise<RankResult[]> {
  const ranks = await startRun(config, options);
  return await Promise.all(ranks.map(({ ended }) => ended));
}

/** Fails with the output of the ranks unless all ended with `code`. */
export function expectCodes(results: readonly RankResult[], code: number): void {
  if (results.every((result) => result.code === code)) return;
  const said = results.map(
    (result, rank) =>
      `rank ${rank}: code ${result.code} ${result.signal ?? ""}\n${result.stdout}${result.stderr}`,
  );
  throw new Error(`expected all ranks to end with ${code}\n${said.join("\n")}`);
}

/** Resolves when a rank's output matches. */
export async function untilSaid(rank: RankProcess, pattern: RegExp): Promise<void> {
  for (let waited = 0; !pattern.test(rank.output.stdout); waited += 50) {
    if (rank.child.exitCode !== null || waited > 100_000) {
      throw new Error(`never said ${pattern}: ${rank.output.stdout}${rank.output.stderr}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** Step of the newest checkpoint. */
export async function newestStep(out: string): Promise<number> {
  const steps = (await readdir(out)).map((name) => Number(/^step-(\d+)$/.exec(name)?.[1] ?? -1));
  return Math.max(...steps);
}

let files = 0;

/** Writes a configuration for a run of seconds: 8 windows per step for any number of ranks. */
export async function writeConfig(
  folder: string,
  data: string,
  worldSize: number,
  overrides: Record<string, unknown> = {},
): Promise<{ file: string; out: string }> {
  const name = `run-${process.pid}-${files++}`;
  const out = join(folder, name);
  const file = join(folder, `${name}.yaml`);
  const config = {
    name,
    out,
    steps: 8,
    seed: 5,
    device: device === "cpu" ? "cpu" : "cuda",
    precision: "fp32",
    model: {
      vocabSize: 4096,
      hiddenSize: 32,
      intermediateSize: 48,
      layers: 3,
      heads: 2,
      kvHeads: 1,
      contextLength: 32,
    },
    data: { train: { [data]: 1 } },
    batch: { microBatch: 8 / worldSize },
    optimizer: { peakLr: 5e-3, warmupSteps: 2 },
    checkpoint: { every: 4 },
    evaluate: { every: 4, batches: 2 * worldSize },
    distributed: { timeoutSeconds: 20, startTimeoutSeconds: 30 },
    ...overrides,
  };
  await writeFile(file, stringify(config));
  return { file, out };
}

export async function stepsOf(out: string): Promise<StepMetrics[]> {
  return await readMetrics(join(out, "metrics.jsonl"));
}

export const figures = (steps: readonly StepMetrics[]) =>
  steps.map(({ step, loss, gradNorm, lr, tokens }) => ({ step, loss, gradNorm, lr, tokens }));

export async function fileOfStep(out: string, step: number, name: string): Promise<Buffer> {
  return await readFile(join(out, `step-${String(step).padStart(10, "0")}`, name));
}
