// docs/faults.md, rows C2, R1, R2 and S1: a run as a user starts it, in its own process, killed and
// started again.
import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { stringify } from "yaml";
import { readMetrics } from "../../lib/train/metrics.js";
import { buildLibrary, root } from "../cli/build.js";
import { cliFile } from "../cli/run.js";
import { tinyConfig, tinyData } from "../support/tiny-run.js";

let folder: string;
let data: string;
beforeAll(async () => {
  buildLibrary();
  ({ folder, data } = await tinyData());
});

async function configFile(name: string, steps: number): Promise<{ file: string; out: string }> {
  const out = join(folder, name);
  const { model, ...config } = tinyConfig(data, out, { steps, checkpoint: { every: 10 } });
  const file = join(folder, `${name}.yaml`);
  await writeFile(file, stringify({ ...config, model }));
  return { file, out };
}

function train(file: string): ChildProcess {
  return spawn(process.execPath, [cliFile, "train", file], { cwd: root, stdio: "ignore" });
}

async function stepsWritten(out: string): Promise<number> {
  return (await readMetrics(join(out, "metrics.jsonl")).catch(() => [])).at(-1)?.step ?? 0;
}

/** Waits until the run reaches a step, sends the signal, and waits for the end. */
async function signalAt(child: ChildProcess, out: string, step: number, signal: NodeJS.Signals) {
  const ended = once(child, "exit") as Promise<[number | null, NodeJS.Signals | null]>;
  while ((await stepsWritten(out)) < step && child.exitCode === null) {
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  child.kill(signal);
  return await ended;
}

async function outcome(out: string, step: number) {
  const name = `step-${String(step).padStart(10, "0")}`;
  const hash = async (file: string) =>
    createHash("sha256")
      .update(await readFile(join(out, name, file)))
      .digest("hex");
  return {
    steps: (await readMetrics(join(out, "metrics.jsonl"))).map(({ step, loss, gradNorm }) => [
      step,
      loss,
      gradNorm,
    ]),
    weights: await hash("model.safetensors"),
    optimizer: await hash("optimizer-state.safetensors"),
  };
}

test("40 steps equal 20 and more, kill -9, and the rest: losses, norms and every tensor", async () => {
  const whole = await configFile("whole", 40);
  expect((await once(train(whole.file), "exit"))[0]).toBe(0);
  const broken = await configFile("broken", 40);
  const kills = [23, 31];
  for (const step of kills) {
    const [code, signal] = await signalAt(train(broken.file), broken.out, step, "SIGKILL");
    expect([code, signal]).toEqual([null, "SIGKILL"]);
  }
  expect((await once(train(broken.file), "exit"))[0]).toBe(0);
  expect(await outcome(broken.out, 40)).toEqual(await outcome(whole.out, 40));
}, 180_000);

test("SIGTERM finishes the step, saves, exits 75; the same command goes on with equal bits", async () => {
  const whole = await configFile("calm", 60);
  expect((await once(train(whole.file), "exit"))[0]).toBe(0);
  const asked = await configFile("asked", 60);
  expect(await signalAt(train(asked.file), asked.out, 13, "SIGTERM")).toEqual([75, null]);
  const stoppedAt = await stepsWritten(asked.out);
  await readFile(join(asked.out, `step-${String(stoppedAt).padStart(10, "0")}`, "manifest.json"));
  expect((await once(train(asked.file), "exit"))[0]).toBe(0);
  expect(await outcome(asked.out, 60)).toEqual(await outcome(whole.out, 60));
}, 180_000);
