// docs/faults.md, rows C1, C3, C4 and C5: a save is killed, refused by the disk or interrupted, at
// each of its calls in turn.
import { execFile } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { listCheckpoints } from "../../lib/checkpoint/folder.js";
import { openNewest } from "../../lib/checkpoint/load.js";
import { saveCheckpoint } from "../../lib/checkpoint/save.js";
import { markFile } from "../../lib/files/own-folder.js";
import { contentsOf, expectContents } from "../checkpoint/support/contents.js";
import { createHarness, type Harness, temporaryFolder } from "../checkpoint/support/harness.js";

let harness: Harness;
beforeAll(() => {
  harness = createHarness();
});
afterAll(() => harness.remove());

interface Call {
  name: string;
  path: string;
}

async function withFolder<T>(run: (folder: string) => Promise<T>): Promise<T> {
  const { path, remove } = temporaryFolder();
  try {
    return await run(path);
  } finally {
    remove();
  }
}

async function callsOfOneSave(): Promise<Call[]> {
  return await withFolder(async (folder) => {
    const run = join(folder, "run");
    const log = join(folder, "log");
    await saveCheckpoint(makeRun(run), 1, contentsOf(1));
    const result = await harness.run("save-child", [run, 2, 2], { FAULT_DIR: run, FAULT_LOG: log });
    expect(result).toMatchObject({ code: 0, lines: ["saved 2"], stderr: "" });
    return readFileSync(log, "utf8")
      .trimEnd()
      .split("\n")
      .map((line) => {
        const space = line.indexOf(" ");
        return { name: line.slice(0, space), path: line.slice(space + 1 + run.length + 1) };
      });
  });
}

function makeRun(path: string): string {
  mkdirSync(path);
  return path;
}

test("a file is synced after its last write, the folder before the rename, the parent after it", async () => {
  const calls = await callsOfOneSave();
  const last = (name: string, path: string) =>
    calls.findLastIndex((call) => call.name === name && call.path === path);
  const first = (name: string, path: string) =>
    calls.findIndex((call) => call.name === name && call.path === path);
  const temporary = "step-0000000002.tmp/checkpoint";
  const created = calls
    .filter(({ name, path }) => name === "create" && path.startsWith(temporary))
    .map(({ path }) => path);
  expect(created.length).toBe(7); // config, 2 shards, index, optimizer, trainer, manifest
  expect(created.at(-1)).toBe(`${temporary}/manifest.json`);
  const rename = first("rename", "step-0000000002");
  const folderSync = last("fsync", temporary);
  for (const file of created) {
    expect(last("write", file)).toBeGreaterThan(first("create", file));
    expect(first("fsync", file)).toBeGreaterThan(last("write", file));
    expect(folderSync).toBeGreaterThan(first("fsync", file));
    if (file !== created.at(-1)) {
      expect(first("create", `${temporary}/manifest.json`)).toBeGreaterThan(first("fsync", file));
    }
  }
  expect(rename).toBeGreaterThan(folderSync);
  expect(last("fsync", "")).toBeGreaterThan(rename);
});

// SIGKILL hits every call. The other faults hit a part of them to save time: all calls share one
// error path.
test.each([
  ["kill", 1],
  ["half-kill", 3],
  ["EIO", 3],
  ["ENOSPC", 3],
  ["EDQUOT", 5],
] as const)(
  "%s at the calls of a save leaves the old or the new checkpoint as the newest valid one",
  async (action, stride) => {
    const total = (await callsOfOneSave()).length;
    expect(total).toBeGreaterThan(20);
    const newest = new Map<number, number>();
    let hits = 0;
    for (let point = 1; point <= total; point += stride) {
      await withFolder(async (folder) => {
        const run = makeRun(join(folder, "run"));
        await saveCheckpoint(run, 1, contentsOf(1));
        const result = await harness.run("save-child", [run, 2, 2], {
          FAULT_DIR: run,
          FAULT_POINT: `${point}`,
          FAULT_ACTION: action,
        });
        const killed = action.endsWith("kill");
        const saved = result.lines.includes("saved 2");
        if (killed) expect(result.signal).toBe("SIGKILL");
        if (!killed && !saved) {
          expect(result.code).toBe(4);
          expect(result.lines.join("\n")).toContain(action);
          expect(readdirSync(run).filter((name) => name.endsWith(".tmp"))).toEqual([]);
        }
        if (killed || !saved) hits += 1;
        const checkpoint = await openNewest(run, {
          onWarning: (message) => {
            throw new Error(`point ${point}: ${message}`);
          },
        });
        if (checkpoint === null) throw new Error(`point ${point}: no checkpoint is left`);
        await expectContents(checkpoint);
        if (saved) expect(checkpoint.step).toBe(2);
        newest.set(checkpoint.step, (newest.get(checkpoint.step) ?? 0) + 1);
        if (hits % 4 !== 1) return;
        // The next run cleans up and saves the same step again.
        const again = await harness.run("save-child", [run, 2, 3]);
        expect(again).toMatchObject({ code: 0, lines: ["saved 2", "saved 3"] });
        expect((await listCheckpoints(run)).map(({ step }) => step)).toEqual([2, 3]);
      });
    }
    expect(hits).toBeGreaterThan(total / stride / 2);
    expect(newest.get(1) ?? 0).toBeGreaterThan(3);
  },
  300_000,
);

test("short and interrupted writes are continued", async () => {
  await withFolder(async (run) => {
    const environment = { FAULT_DIR: run, FAULT_SHORT: "1", FAULT_LOG: `${run}.log` };
    const result = await harness.run("save-child", [run, 1, 2], environment);
    expect(result).toMatchObject({ code: 0, lines: ["saved 1", "saved 2"] });
    const writes = readFileSync(`${run}.log`, "utf8").match(/^write /gm)?.length ?? 0;
    expect(writes).toBeGreaterThan(100); // the shim was at work
    const checkpoint = await openNewest(run);
    expect(checkpoint?.step).toBe(2);
    if (checkpoint) await expectContents(checkpoint);
  });
});

test("three failed saves in a row end the run with exit code 4, the last good one stays", async () => {
  await withFolder(async (run) => {
    await saveCheckpoint(run, 1, contentsOf(1));
    const environment = { FAULT_DIR: run, FAULT_POINT: "1", FAULT_ACTION: "every-write" };
    const result = await harness.run("save-child", [run, 2, 9], environment);
    expect(result.code).toBe(4);
    const failed = result.lines.filter((line) => line.startsWith("failed"));
    expect(failed.map((line) => line.split(" ")[1])).toEqual(["2", "3", "4"]);
    expect(failed[0]).toContain("ENOSPC");
    expect(failed[0]).toContain("the disk is full");
    expect(readdirSync(run)).toEqual(["step-0000000001"]);
    expect((await openNewest(run))?.step).toBe(1);
  });
});

test("a file beyond the size limit fails with EFBIG and leaves nothing", async () => {
  await withFolder(async (run) => {
    await saveCheckpoint(run, 1, contentsOf(1));
    const script = join(harness.shim, "..", "test/checkpoint/support/save-child.js");
    const root = process.env.LLAMAFORGE_PREBUILD ?? process.cwd();
    // ulimit counts blocks of 1024 bytes. The first shard is larger than the limit.
    const command = `trap '' XFSZ; ulimit -f 1; exec "${process.execPath}" "${script}" "${run}" 2 2`;
    const lines = await new Promise<string>((resolve) => {
      const env = { ...process.env, LLAMAFORGE_PREBUILD: root, NODE_OPTIONS: "" };
      execFile("bash", ["-c", command], { env }, (_error, stdout) => resolve(stdout));
    });
    expect(lines).toContain("EFBIG");
    expect(existsSync(join(run, "step-0000000002.tmp"))).toBe(false);
    expect((await openNewest(run))?.step).toBe(1);
  });
});

test("a step that is saved again replaces the old one at once, also where names cannot be exchanged", async () => {
  const variants: Record<string, string>[] = [{}, { FAULT_NO_EXCHANGE: "1" }];
  for (const environment of variants) {
    await withFolder(async (run) => {
      await saveCheckpoint(run, 1, contentsOf(1));
      await saveCheckpoint(run, 2, { ...contentsOf(2), trainer: { stale: true } });
      const result = await harness.run("save-child", [run, 2, 2], environment);
      expect(result).toMatchObject({ code: 0, lines: ["saved 2"] });
      const checkpoint = await openNewest(run);
      if (checkpoint === null) throw new Error("no checkpoint is left");
      expect(checkpoint.step).toBe(2);
      await expectContents(checkpoint);
      // If two names cannot be exchanged, the old folder moves to the trash first.
      const left = readdirSync(run).filter((name) => name !== ".trash");
      expect(left.sort()).toEqual(["step-0000000001", "step-0000000002"]);
      const trash = join(run, ".trash");
      if (existsSync(trash)) expect(readdirSync(trash)).toEqual([markFile]);
    });
  }
});
