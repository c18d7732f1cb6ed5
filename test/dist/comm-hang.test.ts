/**
 * docs/faults.md, rows P2 and P3: a rank hangs or calls another collective. Every other rank names
 * it and ends with 6.
 */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { buildLibrary } from "../cli/build.js";
import { endRanks } from "./comm-ranks.js";
import { endsWith6, latestMs, othersOf, run, timeoutMs } from "./comm-trouble.js";

beforeAll(buildLibrary);
afterAll(endRanks);

describe.concurrent("P2: a rank that hangs", () => {
  test.each([
    ["is stopped", 1, 2],
    ["is stopped, and it serves the store", 0, 2],
    ["is stopped among four", 3, 4],
  ])("%s", async (_, who, worldSize) => {
    const { others, took, culprit } = await othersOf("stop", who, worldSize);
    for (const each of others) {
      endsWith6(each);
      expect(each.stderr).toMatch(new RegExp(`of ${worldSize}: rank ${who}\\b.* does not answer`));
      expect(each.stderr).toContain("#4 of group all, allReduce of 1,000 f32, has not ended");
    }
    expect(took).toBeGreaterThan(timeoutMs - 100);
    expect(took).toBeLessThan(latestMs);
    culprit.child.kill("SIGCONT");
    expect((await culprit.ended).code).toBe(6);
  });

  test("is busy with something else and does not call the collective", async () => {
    const { others, culprit } = await othersOf("busy", 1);
    for (const each of others) {
      endsWith6(each);
      expect(each.stderr).toContain("rank 1 has not called #4 of group all");
    }
    endsWith6(await culprit.ended); // its watchdog needs no JavaScript
  });
});

describe.concurrent("P3: ranks that do not do the same", () => {
  test.each([
    ["another size", "size", /allReduce of 999 f32|allReduce of 1,?000 f32/],
    ["another collective", "kind", /broadcast of 1,?000 f32/],
  ])("%s", async (_, what, words) => {
    const ranks = await run(what, 1);
    const results = await Promise.all(ranks.map(({ ended }) => ended));
    for (const each of results) {
      endsWith6(each);
      expect(each.stderr).toMatch(/the ranks do not call the same collectives/i);
      expect(each.stderr).toMatch(words);
      expect(each.stderr).toContain("#4");
    }
  });
});
