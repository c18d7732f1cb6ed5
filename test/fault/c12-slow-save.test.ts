// docs/faults.md, row C12: a save slower than the interval makes the next one wait. Each save
// writes the values of its own step.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { afterEach, beforeEach, expect, test } from "vitest";
import { openNewest } from "../../lib/checkpoint/load.js";
import { type CheckpointContents, CheckpointWriter } from "../../lib/checkpoint/save.js";
import { CheckpointError } from "../../lib/core/errors.js";
import { contentsOf, expectContents } from "../checkpoint/support/contents.js";
import { buildShim, preload, temporaryFolder } from "../checkpoint/support/harness.js";
import { buildLibrary } from "../cli/build.js";
import { outcome, train, writeConfig } from "../support/child-run.js";
import { tinyData } from "../support/tiny-run.js";

let folder: ReturnType<typeof temporaryFolder>;
beforeEach(() => {
  folder = temporaryFolder();
});
afterEach(() => folder.remove());

function withSource(bytes: () => Promise<Uint8Array>): CheckpointContents {
  const source = { name: "slow", dtype: "U8", shape: [4], bytes } as const;
  return { ...contentsOf(1), tensors: { "slow.safetensors": [source] } };
}

test("ready() waits for the running save: there is one snapshot at a time", async () => {
  let open = 0;
  let most = 0;
  const writer = new CheckpointWriter(folder.path);
  for (let step = 1; step <= 4; step += 1) {
    await writer.ready();
    expect(open).toBe(0);
    writer.start(
      step,
      withSource(async () => {
        open += 1;
        most = Math.max(most, open);
        await new Promise((resolve) => setTimeout(resolve, 30));
        open -= 1;
        return new Uint8Array(4);
      }),
    );
    expect(writer.busy).toBe(true);
    expect(() => writer.start(step, contentsOf(step))).toThrow(/await ready\(\)/);
  }
  await writer.finish();
  expect(writer.busy).toBe(false);
  expect(most).toBe(1);
});

test("failures are reported, counted in a row, and finish() tells of the last one", async () => {
  const failed: number[] = [];
  const writer = new CheckpointWriter(folder.path, {
    failureLimit: 2,
    onFailed: (_error, step) => failed.push(step),
  });
  const bad = withSource(async () => new Uint8Array(3));
  const save = async (step: number, contents: CheckpointContents) => {
    await writer.ready();
    writer.start(step, contents);
  };
  await save(1, bad);
  await save(2, contentsOf(2)); // a success in between: the count starts again
  await save(3, bad);
  await expect(writer.finish()).rejects.toThrow(
    /tensor slow: expected 4 bytes \(U8 \[4\]\), got 3/,
  );
  await save(4, bad);
  await expect(save(5, bad)).rejects.toThrow(/2 saves in a row failed/);
  expect(failed).toEqual([1, 3, 4]);
  expect((await openNewest(folder.path))?.step).toBe(2);
});

test("an error of a source ends the save and is the cause told", async () => {
  const writer = new CheckpointWriter(folder.path);
  writer.start(
    1,
    withSource(() => Promise.reject(new CheckpointError("the snapshot is gone"))),
  );
  await expect(writer.finish()).rejects.toThrow("the snapshot is gone");
  expect(await openNewest(folder.path)).toBeNull();
});

test("bytes that are changed after they were handed over are not what is written", async () => {
  const writer = new CheckpointWriter(folder.path);
  const contents = contentsOf(3);
  const handed: Uint8Array[] = [];
  const tensors = Object.fromEntries(
    Object.entries(contents.tensors).map(([file, sources]) => [
      file,
      sources.map((source) => ({
        ...source,
        bytes: async () => {
          const bytes = await source.bytes();
          handed.push(bytes);
          // The trainer continues as soon as the writer waits for the disk.
          setImmediate(() => bytes.fill(0xff));
          return bytes;
        },
      })),
    ]),
  );
  writer.start(3, { ...contents, tensors });
  await writer.finish();
  expect(handed).toHaveLength(6);
  const checkpoint = await openNewest(folder.path);
  if (checkpoint === null) throw new Error("nothing was saved");
  await expectContents(checkpoint);
});

/**
 * Processor time of the JS thread so far, in milliseconds: unlike a clock, it ignores other
 * programs.
 */
function threadMilliseconds(): number {
  const text = readFileSync(`/proc/self/task/${process.pid}/schedstat`, "utf8");
  return Number(text.split(" ")[0]) / 1e6;
}

test("a save of 200 MB never holds up the event loop for long", async () => {
  const big = new Uint8Array(200_000_000);
  const writer = new CheckpointWriter(folder.path);
  const source = { name: "big", dtype: "U8", shape: [big.length], bytes: () => big } as const;
  const turns: number[] = [];
  let last = threadMilliseconds();
  const timer = setInterval(() => {
    const now = threadMilliseconds();
    turns.push(now - last);
    last = now;
  }, 1);
  writer.start(1, { ...contentsOf(1), tensors: { "big.safetensors": [source] } });
  await writer.finish();
  clearInterval(timer);
  turns.sort((a, b) => a - b);
  expect(turns.length).toBeGreaterThan(20);
  // One turn copies 4 MiB, a fiftieth of the data. It must not hash all data at once, which takes
  // this thread so long:
  const before = threadMilliseconds();
  createHash("sha256").update(big).digest();
  const inOneGo = threadMilliseconds() - before;
  expect(turns[turns.length >> 1]).toBeLessThan(inOneGo / 20);
  expect(turns.at(-1)).toBeLessThan(inOneGo / 2);
});

test("a run whose disk is slow writes each checkpoint as it was at its step, though their copies share memory", async () => {
  buildLibrary();
  const place = await tinyData();
  const shim = buildShim(folder.path);
  const config = { checkpoint: { every: 3, keepLast: 9 }, evaluate: { every: 0 } };
  const plain = await writeConfig(place, "plain", config);
  const slow = await writeConfig(place, "slow", config);
  expect(await train(plain.file).ended).toMatchObject({ code: 0 });
  // Each file takes 0.2 s, so steps run while a save is written, and the next save waits for it.
  const delay = { LD_PRELOAD: preload(shim), FAULT_DIR: slow.out, FAULT_DELAY: "200" };
  const started = performance.now();
  expect(await train(slow.file, [], delay).ended).toMatchObject({ code: 0 });
  expect(performance.now() - started).toBeGreaterThan(4 * 5 * 200);
  for (const step of [3, 6, 9, 12]) {
    expect(await outcome(slow.out, step), `step ${step}`).toEqual(await outcome(plain.out, step));
  }
}, 120_000);
