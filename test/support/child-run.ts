/** Training runs in their own processes, as a user starts them, and their files. */
import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { stringify } from "yaml";
import { readMetrics } from "../../lib/train/metrics.js";
import { root } from "../cli/build.js";
import { cliFile } from "../cli/run.js";
import { tinyConfig } from "./tiny-run.js";

/** Writes a configuration for a run of seconds to `folder/name`. */
export async function writeConfig(
  { folder, data }: { folder: string; data: string },
  name: string,
  overrides: object = {},
): Promise<{ file: string; out: string }> {
  const out = join(folder, name);
  const file = join(folder, `${name}.yaml`);
  await writeFile(file, stringify({ ...tinyConfig(data, out, overrides) }));
  return { file, out };
}

export interface Ended {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

/** Starts `llamaforge train FILE`. `ended` resolves with its output. */
export function train(
  file: string,
  args: string[] = [],
  env: Record<string, string> = {},
): { child: ChildProcess; ended: Promise<Ended> } {
  const child = spawn(process.execPath, [cliFile, "train", file, ...args], {
    cwd: root,
    env: { ...process.env, ...env },
  });
  const result: Ended = { code: null, signal: null, stdout: "", stderr: "" };
  child.stdout.on("data", (chunk: Buffer) => {
    result.stdout += chunk;
  });
  child.stderr.on("data", (chunk: Buffer) => {
    result.stderr += chunk;
  });
  const ended = once(child, "close").then(([code, signal]) => ({ ...result, code, signal }));
  return { child, ended };
}

/** Variables that make a fault happen (lib/core/faults.ts). */
export const fault = (plan: string) => ({ LLAMAFORGE_TEST_FAULTS: "1", FAULT: plan });

/** Number of the last step in a run's metrics, 0 without any. */
export async function lastStep(out: string): Promise<number> {
  return (await readMetrics(join(out, "metrics.jsonl")).catch(() => [])).at(-1)?.step ?? 0;
}

/** Waits until a condition holds or the process ends. */
export async function until(
  holds: () => boolean | Promise<boolean>,
  child?: ChildProcess,
): Promise<void> {
  while (!(await holds()) && (child === undefined || child.exitCode === null)) {
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** All results of a finished run that a resume must not change, as one comparable value. */
export async function outcome(out: string, step: number) {
  const name = `step-${String(step).padStart(10, "0")}`;
  const hash = async (file: string) =>
    createHash("sha256")
      .update(await readFile(join(out, name, file)))
      .digest("hex");
  const steps = await readMetrics(join(out, "metrics.jsonl"));
  return {
    steps: steps.map(({ step, loss, gradNorm }) => [step, loss, gradNorm]),
    weights: await hash("model.safetensors"),
    optimizer: await hash("optimizer-state.safetensors"),
  };
}
