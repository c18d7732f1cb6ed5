// All strategies on 2 and 4 ranks beside one process, in fp32, in fp8, and with a reduction in bf16.
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import {
  bf16Bound,
  bound,
  expectClose,
  prepareRuns,
  stateFile,
  type Trained,
  tensorsOf,
  train,
  weightsFile,
} from "./strategy-runs.js";

prepareRuns();

describe("the same training, whoever does it", () => {
  let alone: Trained;
  beforeAll(async () => {
    alone = await train(1);
  });

  test.each([
    [2, "replicated", 2],
    [4, "replicated", 4],
    [2, "zero1", 2],
    [4, "zero1", 4],
    [2, "full_shard", 2],
    [4, "full_shard", 4],
    [4, "hybrid_shard", 2],
  ] as const)("%i ranks, %s, %i on a host", async (worldSize, parallel, perHost) => {
    const trained = await train(worldSize, { parallel }, perHost);
    expectClose(trained.steps, alone.steps);
    expect(Math.abs(trained.validation / alone.validation - 1)).toBeLessThan(bound);
    expect(trained.stdout[0]).toContain("done: 2,048 tokens");
    expect(trained.stdout.slice(1).join("")).toBe("");
    for (const file of [weightsFile, stateFile]) {
      const [mine, reference] = [
        await tensorsOf(trained.out, 8, file),
        await tensorsOf(alone.out, 8, file),
      ];
      expect([...mine].map(([name, bytes]) => [name, bytes.length])).toEqual(
        [...reference].map(([name, bytes]) => [name, bytes.length]),
      );
    }
    const logs = await readdir(join(trained.out, "logs"));
    expect(logs.sort()).toEqual(Array.from({ length: worldSize }, (_, i) => `rank-${i}.log`));
    const log = await readFile(join(trained.out, "logs", "rank-1.log"), "utf8");
    expect(log).toContain(`rank 1 of ${worldSize}`);
    expect(log).toContain("step 8 ");
  });

  // A cast of gathered weights gives the bits of a copy that is kept: the first losses are equal. The
  // norm of divided gradients is summed in another order, and with it the later weights.
  test("fp8 trains the same with divided optimizer state and divided weights", async () => {
    const whole = await train(2, { precision: "fp8", parallel: "replicated" });
    for (const parallel of ["zero1", "full_shard"]) {
      const divided = await train(2, { precision: "fp8", parallel });
      expect(divided.steps[0]?.loss).toBe(whole.steps[0]?.loss);
      expectClose(divided.steps, whole.steps, 1e-3);
    }
    const bf16 = await train(2, { precision: "bf16", parallel: "replicated" });
    expect(whole.steps).not.toEqual(bf16.steps);
  });

  test("gradients reduced in bf16 stay close, and are not the same", async () => {
    const options = { parallel: "zero1", distributed: { reduce: "bf16" } };
    const trained = await train(2, options);
    expectClose(trained.steps, alone.steps, bf16Bound);
    expect(trained.steps).not.toEqual((await train(2, { parallel: "zero1" })).steps);
  });
});
