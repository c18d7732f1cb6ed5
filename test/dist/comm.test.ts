/**
 * Collectives between real processes: values, bits, memory, overlap. Gloo on the CPU, NCCL on a
 * GPU.
 */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { buildLibrary } from "../cli/build.js";
import { device, endRanks, runRanks } from "./comm-ranks.js";

const onCpu = device === "cpu";
beforeAll(buildLibrary);
afterAll(endRanks);

describe.each([1, 2, 4])("%i ranks", (worldSize) => {
  test("move and sum exactly, with the same bits on every rank and each time", async () => {
    const results = await runRanks("values", worldSize);
    for (const { code, said, stderr } of results) {
      expect({
        code,
        stderr,
        wrong: said.filter((value) => typeof value.wrong === "string"),
      }).toEqual({
        code: 0,
        stderr: "",
        wrong: [],
      });
    }
    const reports = results.map(({ said }) => said[0]);
    for (const { bits, again, backend } of reports) {
      expect(bits).toEqual(reports[0].bits);
      expect(again).toEqual(bits);
      if (worldSize > 1) expect(backend).toMatch(onCpu ? /^Gloo \d/ : /^NCCL \d/);
      if (!onCpu) continue;
      // Sums follow the order of the ranks in every algorithm. bf16 is added in fp32.
      expect(bits.f32.allReduce).toBe(bits.inOrder);
      expect(bits.f32.inTwoSteps).toBe(bits.inOrder);
      expect(bits.bf16.inTwoSteps).toBe(bits.bf16.allReduce);
      expect(bits.few).toBe(worldSize === 1 ? 256 : worldSize === 2 ? 256 : 258);
    }
  });
});

test("groups within groups: each rank in two of them, memory free again, volumes as theory says", async () => {
  const results = await runRanks("groups", 4);
  for (const { code, said, stderr } of results) {
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    const [{ wrong, leftTensors, leftBytes, stats }] = said;
    expect({ wrong, leftTensors, leftBytes }).toEqual({ wrong: 0, leftTensors: 0, leftBytes: 0 });
    // 20 rounds of 10,000 f32 over 2 shards and 2 replicas.
    expect(stats.inner.reduceScatter).toEqual({ calls: 20, bytes: 800_000, sentBytes: 400_000 });
    expect(stats.inner.allGather).toEqual({ calls: 20, bytes: 800_000, sentBytes: 400_000 });
    expect(stats.outer.allReduce).toEqual({ calls: 20, bytes: 400_000, sentBytes: 400_000 });
  }
});

test("a collective runs beside the operations that come after it", async () => {
  // The work takes some hundred milliseconds, far longer than enqueuing it.
  const work = onCpu ? { side: 512, products: 100 } : { side: 4096, products: 100 };
  const results = await runRanks("overlap", 2, { options: work });
  for (const { code, said, stderr } of results) {
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(said[0]).toMatchObject({ wrong: 0, beside: true });
    expect(said[0].ticks).toBeGreaterThan(5); // the event loop was not blocked
  }
});
