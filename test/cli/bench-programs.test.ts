/**
 * bench/event-loop and bench/serve measure on GPUs. These tests run them on the CPU with little
 * work.
 */
import { execFile } from "node:child_process";
import { mkdtemp, readFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { beforeAll, expect, test } from "vitest";
import { buildLibrary, root } from "./build.js";

beforeAll(() => buildLibrary());

const small = ["--preset", "quickstart", "--device", "cpu", "--sequence-length", "32"];
const few = [...small, "--accumulation", "1", "--warmup", "1"];

async function bench(program: string, args: string[]) {
  const folder = await mkdtemp(join(tmpdir(), "llamaforge-bench-programs-"));
  const json = join(folder, "deep/er/result.json");
  const { stdout } = await promisify(execFile)(
    process.execPath,
    [join(root, "bench", program), ...few, ...args, "--json", json],
    { env: { ...process.env, LLAMAFORGE_THREADS: "1" } },
  );
  return { stdout, result: JSON.parse(await readFile(json, "utf8")) };
}

test("the event loop's lag in all modes, and over two ranks", { timeout: 300_000 }, async () => {
  // One process for each rank. The two ranks only train.
  const modes = ["validating", "saving", "generating"];
  const options = ["--steps", "2", "--batches", "1", "--tokens", "2", "--micro-batch", "1"];
  const { stdout, result } = await bench("event-loop/run.mjs", [
    ...options,
    ...["--modes", modes.join(",")],
  ]);
  expect(result.rows.map(({ mode }: { mode: string }) => mode)).toEqual(modes);
  const two = ["--modes", "training", "--nproc", "2", "--parallel", "full_shard"];
  const ranks = await bench("event-loop/run.mjs", [...options, ...two]);
  expect(ranks.result.rows[0].results.map(({ rank }: { rank: number }) => rank)).toEqual([0, 1]);
  for (const row of [...result.rows, ...ranks.result.rows]) {
    for (const { lateMs, share, ticks, stepMs, javascriptMsPerStep } of row.results) {
      expect(lateMs.median).toBeLessThanOrEqual(lateMs.p99);
      expect(lateMs.p99).toBeLessThanOrEqual(lateMs.max);
      expect(share).toBeGreaterThan(0);
      for (const figure of [ticks, stepMs, javascriptMsPerStep]) expect(figure).toBeGreaterThan(0);
    }
    expect(stdout + ranks.stdout).toContain(row.mode);
  }
});

test("a server that trains answers a second process", { timeout: 120_000 }, async () => {
  const options = ["--steps", "4", "--micro-batch", "1", "--sample-every", "2"];
  const { stdout, result } = await bench("serve/run.mjs", options);
  expect(result.requests).toBeGreaterThan(0);
  expect(result.failures).toBe(0);
  const { p50, p99, max } = result.latencyMs;
  expect(p50).toBeLessThanOrEqual(p99);
  expect(p99).toBeLessThanOrEqual(max);
  expect(result.trained.steps).toBe(4);
  expect(stdout).toMatch(/goal +p99 within 50 ms: (met|missed)/);
});
