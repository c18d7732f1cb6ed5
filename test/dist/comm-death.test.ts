/** docs/faults.md, row P1: a rank dies. Every other rank names it and ends with 6 in time. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { buildLibrary } from "../cli/build.js";
import { endRanks } from "./comm-ranks.js";
import { endsWith6, latestMs, othersOf } from "./comm-trouble.js";

beforeAll(buildLibrary);
afterAll(endRanks);

describe.concurrent("P1: a rank that ends", () => {
  test.each([
    ["is killed", "kill", 1, 2],
    ["is killed, and it served the store", "kill", 0, 2],
    ["is killed among four", "kill", 2, 4],
    ["throws", "throw", 1, 2],
    ["exits early", "exit", 1, 2],
  ])("%s", async (_, what, who, worldSize) => {
    const { others, took } = await othersOf(what, who, worldSize);
    for (const each of others) {
      endsWith6(each);
      expect(each.stderr).toMatch(
        new RegExp(`llamaforge: rank \\d of ${worldSize}: rank ${who}\\b`),
      );
      // JavaScript gets the error too, with the same message.
      const error = each.said.at(-1);
      expect(error).toMatchObject({ name: "PeerError", code: "ERR_PEER" });
      expect(error.message).toContain(`rank ${who}`);
      // The error also lists the last collectives.
      expect(each.stderr).toContain("#3 allReduce of 1,000 f32");
    }
    expect(took).toBeLessThan(latestMs);
  });

  test("while JavaScript is blocked in the others", async () => {
    const { others, took } = await othersOf("kill", 1, 2, { blocked: true });
    for (const each of others) {
      endsWith6(each);
      expect(each.stderr).toContain("rank 1");
      expect(each.said).toEqual(["ready"]);
    }
    expect(took).toBeLessThan(latestMs);
  });

  test("gives up by itself", async () => {
    const { others, culprit } = await othersOf("abort", 1);
    for (const each of [...others, await culprit.ended]) {
      endsWith6(each);
      expect(each.stderr).toContain("Rank 1 gave up: no more of this.");
    }
  });

  test("the others may end themselves sooner", async () => {
    const { others } = await othersOf("kill", 1, 2, { exitSelf: true });
    for (const each of others) endsWith6(each);
  });
});
