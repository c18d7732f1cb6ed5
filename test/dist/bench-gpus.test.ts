/**
 * bench/gpus/run.mjs measures on machines with several GPUs. Here ranks use the CPU or share one
 * GPU.
 */
import { execFile } from "node:child_process";
import { mkdtemp, readFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { beforeAll, expect, test } from "vitest";
import { buildLibrary, root } from "../cli/build.js";
import { device } from "./comm-ranks.js";

beforeAll(buildLibrary);

test("losses, bits, volume, a timeline of each rank, and the death of a rank", async () => {
  const folder = await mkdtemp(join(tmpdir(), "llamaforge-bench-"));
  const json = join(folder, "result.json");
  const { stdout } = await promisify(execFile)(
    process.execPath,
    [
      join(root, "bench/gpus/run.mjs"),
      ...["--device", device === "cpu" ? "cpu" : "cuda", "--preset", "quickstart"],
      ...["--nproc", "2", "--parallel", "zero1", "--precision", "fp32", "--micro-batch", "1"],
      ...["--sequence-length", "32", "--steps", "2", "--warmup", "1", "--kill"],
      ...["--timeline", folder, "--json", json],
    ],
    { env: { ...process.env, LLAMAFORGE_THREADS: "1" } },
  );
  expect(stdout).toContain("all as expected");
  const { base, runs, killed } = JSON.parse(await readFile(json, "utf8"));
  expect(base.losses).toHaveLength(3);
  expect(runs).toHaveLength(1);
  const [run] = runs;
  expect(run).toMatchObject({ ranks: 2, parallel: "zero1", sameBits: true });
  expect(run.largestLossDifference).toBeLessThan(2e-5);
  expect(run.peakBytes).toHaveLength(2);
  // Gradients and weights once, half from each rank, and a few scalars.
  const parameters = 4096 * 256 * 2 + 6 * (256 * 64 * 8 + 256 * 256 + 3 * 256 * 704 + 512) + 256;
  expect(run.sentBytesPerStep / (4 * parameters)).toBeGreaterThan(1);
  expect(run.sentBytesPerStep / (4 * parameters)).toBeLessThan(1.01);
  expect(run.traced.stepMs).toBeGreaterThan(run.traced.exposedMs);
  expect(run.traced.communicationMs).toBeGreaterThan(0);
  expect(killed.codes).toEqual([6]);

  const { traceEvents } = JSON.parse(
    await readFile(join(folder, "quickstart-2-zero1.json"), "utf8"),
  ) as { traceEvents: { ph: string; name: string; pid: number }[] };
  for (const rank of [0, 1]) {
    const names = traceEvents.filter(({ ph, pid }) => ph === "X" && pid === rank);
    const count = (name: string) => names.filter((event) => event.name === name).length;
    // Two steps of a model of eight groups.
    for (const phase of ["forward embedding", "forward blocks.5", "backward head", "optimizer"])
      expect(count(phase), phase).toBe(2);
    expect(count("reduceScatter")).toBeGreaterThanOrEqual(2 * 8);
    expect(count("allGather")).toBeGreaterThanOrEqual(2 * 8);
  }
  expect(await readFile(join(folder, "quickstart-2-zero1.svg"), "utf8")).toContain("waits for");
}, 120_000);
