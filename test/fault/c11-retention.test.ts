// docs/faults.md, row C11: which checkpoints are deleted. The newest valid one never is.
import { mkdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { listCheckpoints } from "../../lib/checkpoint/folder.js";
import { openNewest } from "../../lib/checkpoint/load.js";
import { applyRetention, chooseDeletions } from "../../lib/checkpoint/retention.js";
import { CheckpointWriter, saveCheckpoint } from "../../lib/checkpoint/save.js";
import { UsageError } from "../../lib/core/errors.js";
import { contentsOf, expectContents } from "../checkpoint/support/contents.js";
import { temporaryFolder } from "../checkpoint/support/harness.js";

const checkpoints = fc.uniqueArray(
  fc.record({
    step: fc.oneof(fc.nat(20), fc.integer({ min: 999_990, max: 1_000_010 }), fc.nat(12_000_000)),
    valid: fc.option(fc.boolean(), { freq: 4 }),
  }),
  { selector: ({ step }) => step, maxLength: 40 },
);
const retention = fc.record({ keepLast: fc.integer({ min: 2, max: 6 }), keepEvery: fc.nat(7) });

test("for any set: the newest valid ones and the milestones stay, nothing newer than them goes", () => {
  fc.assert(
    fc.property(checkpoints, retention, (all, { keepLast, keepEvery }) => {
      const deleted = new Set(chooseDeletions(all, { keepLast, keepEvery }));
      const valid = all.filter((c) => c.valid).map((c) => c.step);
      const newestFirst = [...valid].sort((a, b) => b - a);
      for (const step of newestFirst.slice(0, keepLast)) expect(deleted.has(step)).toBe(false);
      for (const step of valid) {
        if (keepEvery > 0 && step % keepEvery === 0) expect(deleted.has(step)).toBe(false);
      }
      const newest = newestFirst[0];
      for (const step of deleted) expect(step).toBeLessThan(newest ?? Number.NEGATIVE_INFINITY);
      // A checkpoint that could not be read is not deleted.
      for (const { step, valid } of all) if (valid === null) expect(deleted.has(step)).toBe(false);
      // No other valid checkpoint stays, so the disk use is bounded.
      const milestones = valid.filter((step) => keepEvery > 0 && step % keepEvery === 0);
      const stay = new Set([...newestFirst.slice(0, keepLast), ...milestones]);
      expect(valid.filter((step) => !deleted.has(step)).length).toBe(stay.size);
    }),
    { numRuns: 2000 },
  );
});

test("the lowest validation losses stay, whatever their age; damaged ones do not count", () => {
  const losses = [3, 1, null, 2, Number.NaN, 4, 5];
  const checkpoints = losses.map((validation, index) => ({
    step: index + 1,
    valid: index !== 3,
    validation,
  }));
  expect(chooseDeletions(checkpoints, { keepLast: 2, keepBest: 1 })).toEqual([1, 3, 4, 5]);
  expect(chooseDeletions(checkpoints, { keepLast: 2, keepBest: 2 })).toEqual([3, 4, 5]);
  expect(() => chooseDeletions([], { keepLast: 2, keepBest: -1 })).toThrow(UsageError);
});

test("order is by number: step 1240000 outlives 960000, whose name sorts after it elsewhere", () => {
  const steps = [960_000, 980_000, 1_000_000, 1_240_000].map((step) => ({ step, valid: true }));
  expect(chooseDeletions(steps, { keepLast: 2 })).toEqual([960_000, 980_000]);
});

describe("refuses", () => {
  test.each([1, 0, -1, 2.5, Number.NaN, Number.POSITIVE_INFINITY])("keepLast %d", (keepLast) => {
    expect(() => chooseDeletions([], { keepLast })).toThrow(UsageError);
    expect(() => new CheckpointWriter("x", { retention: { keepLast } })).toThrow(/at least 2/);
  });
  test.each([-1, 1.5, Number.NaN])("keepEvery %d", (keepEvery) => {
    expect(() => chooseDeletions([], { keepLast: 2, keepEvery })).toThrow(UsageError);
  });
});

test("on disk, over the 10^6 boundary, with damaged ones among them", async () => {
  const { path, remove } = temporaryFolder();
  for (const step of [999_998, 999_999, 1_000_000, 1_000_001, 1_000_002]) {
    await saveCheckpoint(path, step, contentsOf(step));
  }
  rmSync(join(path, "step-0001000002", "trainer.json")); // newest, but damaged
  rmSync(join(path, "step-0000999999", "manifest.json")); // old and damaged
  mkdirSync(join(path, "unrelated"));
  expect(await applyRetention(path, { keepLast: 2 })).toEqual([999_998, 999_999]);
  const left = (await listCheckpoints(path)).map(({ step }) => step);
  expect(left).toEqual([1_000_000, 1_000_001, 1_000_002]);
  const newest = await openNewest(path);
  expect(newest?.step).toBe(1_000_001);
  if (newest) await expectContents(newest);
  remove();
});

test("only what is certainly damaged goes, and no milestone", async () => {
  const { path, remove } = temporaryFolder();
  for (let step = 1; step <= 7; step += 1) await saveCheckpoint(path, step, contentsOf(step));
  const folder = (step: number) => join(path, `step-000000000${step}`);
  // One of another version of the library, one with a user's file, a damaged one, and a damaged
  // milestone.
  const manifest = join(folder(1), "manifest.json");
  writeFileSync(manifest, readFileSync(manifest, "utf8").replace('"version": 1', '"version": 2'));
  writeFileSync(join(folder(2), "merged.safetensors"), "");
  truncateSync(join(folder(3), "trainer.json"), 9);
  truncateSync(join(folder(4), "trainer.json"), 9);
  expect(await applyRetention(path, { keepLast: 2, keepEvery: 4 })).toEqual([3, 5]);
  const left = (await listCheckpoints(path)).map(({ step }) => step);
  expect(left).toEqual([1, 2, 4, 6, 7]);
  remove();
});

test("a writer keeps the last ones and the milestones", async () => {
  const { path, remove } = temporaryFolder();
  const writer = new CheckpointWriter(path, { retention: { keepLast: 2, keepEvery: 4 } });
  for (let step = 1; step <= 9; step += 1) {
    await writer.ready();
    writer.start(step, contentsOf(step));
  }
  await writer.finish();
  expect((await listCheckpoints(path)).map(({ step }) => step)).toEqual([4, 8, 9]);
  remove();
});
