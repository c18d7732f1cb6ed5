// docs/faults.md, row C3: the disk is full before the start, before a save or during it. The error
// is typed and gives need and free space, training continues, and the last good checkpoint stays.
// The disk is a tmpfs of a few MB if this process may mount one (root).
import { execFileSync } from "node:child_process";
import { appendFileSync, mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { openNewest } from "../../lib/checkpoint/load.js";
import { saveCheckpoint } from "../../lib/checkpoint/save.js";
import {
  checkpointBytes,
  expectSpaceToRun,
  expectSpaceToSave,
} from "../../lib/checkpoint/space.js";
import { CheckpointError, UsageError } from "../../lib/core/errors.js";
import { parameterCount } from "../../lib/model/shapes.js";
import { contentsOf, expectContents } from "../checkpoint/support/contents.js";
import { temporaryFolder } from "../checkpoint/support/harness.js";
import { buildLibrary } from "../cli/build.js";
import { train, writeConfig } from "../support/child-run.js";
import { tinyConfig, tinyData } from "../support/tiny-run.js";

const folder = temporaryFolder();
const disk = join(folder.path, "disk");
let mounted = false;
beforeAll(() => {
  mkdirSync(disk);
  try {
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], { stdio: "ignore" });
    mounted = true;
  } catch {
    // Without root the tests that need a small disk are skipped below.
  }
});
afterAll(() => {
  if (mounted) execFileSync("umount", [disk]);
  folder.remove();
});

test("need and free are named, in an error of the right kind", async () => {
  await expectSpaceToSave(folder.path, 1);
  await expect(expectSpaceToSave(folder.path, 1e18)).rejects.toThrow(CheckpointError);
  await expect(expectSpaceToSave(folder.path, 1e18)).rejects.toThrow(
    /ENOSPC, the checkpoint needs 1000000.0 TB, [\d.]+ \w+ are free/,
  );
  const run = expectSpaceToRun(folder.path, 1e17, { keepLast: 2, keepBest: 1, present: 1 });
  await expect(run).rejects.toThrow(UsageError);
  await expect(run).rejects.toThrow(/3 checkpoints of 100000.0 TB .*need 300000.0 TB, .* are free/);
});

test("the estimate is what a checkpoint of this model takes, to within its small files", async () => {
  const { data } = await tinyData();
  const config = tinyConfig(data, join(folder.path, "unused"));
  // 14 bytes a parameter: bf16 weights, two fp32 moments, the fp32 master copy.
  expect(checkpointBytes(parameterCount(config.model), "bf16") - 4 * 2 ** 20).toBe(
    14 * parameterCount(config.model),
  );
});

test("a save that finds too little room fails before it writes, and leaves the last one", async () => {
  if (!mounted) return expect(process.getuid?.()).not.toBe(0);
  await saveCheckpoint(disk, 1, contentsOf(1));
  const filler = join(disk, "filler");
  writeFileSync(filler, Buffer.alloc(20 * 2 ** 20));
  const big = new Uint8Array(8 * 2 ** 20);
  const source = { name: "big", dtype: "U8", shape: [big.length], bytes: () => big } as const;
  const contents = { ...contentsOf(2), tensors: { "big.safetensors": [source] } };
  await expect(saveCheckpoint(disk, 2, contents)).rejects.toThrow(
    /ENOSPC, the checkpoint needs 8\.4 MB, [\d.]+ MB are free/,
  );
  expect(readdirSync(disk).sort()).toEqual(["filler", "step-0000000001"]);
  rmSync(filler);
  const newest = await openNewest(disk);
  expect(newest?.step).toBe(1);
  if (newest) await expectContents(newest);
  rmSync(newest?.path as string, { recursive: true });
});

test("a run that the disk cannot hold is refused before its first step, with exit code 2", async () => {
  if (!mounted) return expect(process.getuid?.()).not.toBe(0);
  buildLibrary();
  const place = await tinyData();
  const out = join(disk, "run");
  const { file } = await writeConfig(place, "full", { out, checkpoint: { every: 5, keepLast: 9 } });
  const { code, stderr } = await train(file).ended;
  expect(code).toBe(2);
  expect(stderr).toMatch(
    /10 checkpoints of 8\.1 MB will be written .* need 80\.8 MB, 25\.\d MB are free/,
  );
  expect(readdirSync(out)).toEqual(["run.lock"]);
}, 60_000);

test("a disk that fills while the run trains costs checkpoints, not the run, until three in a row failed", async () => {
  if (!mounted) return expect(process.getuid?.()).not.toBe(0);
  const place = await tinyData();
  const out = join(disk, "filling");
  const overrides = { out, steps: 24, checkpoint: { every: 5, keepLast: 2 } };
  const { file } = await writeConfig(place, "filling", overrides);
  const first = await train(file, ["--set", "steps=5", "--set", "optimizer.decaySteps=24"]).ended;
  expect(first.code).toBe(0);
  rmSync(join(disk, "run"), { recursive: true, force: true });
  // The check at the start finds space. From the first progress line on there is none.
  const { child, ended } = train(file);
  child.stdout?.once("data", () => fill(join(disk, "filler")));
  const { code, stderr } = await ended;
  expect(stderr).toMatch(/checkpoint of step \d+ failed: .*ENOSPC/);
  expect(code).toBe(4);
  // Every checkpoint that was still saved is complete.
  expect((await openNewest(out))?.step).toBeGreaterThanOrEqual(5);
  expect(readdirSync(out).filter((name) => name.endsWith(".tmp"))).toEqual([]);
}, 120_000);

/** Writes until the disk is full. */
function fill(path: string): void {
  try {
    for (;;) appendFileSync(path, Buffer.alloc(2 ** 16));
  } catch (error) {
    expect((error as NodeJS.ErrnoException).code).toBe("ENOSPC");
  }
}
