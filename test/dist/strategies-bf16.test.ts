// Strategies in bf16 with accumulation, recomputation and a tied head: losses, resumed runs, a
// change of the strategy.
import { cp, rm } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { tinyModel } from "../support/tiny-run.js";
import { fileOfStep } from "./ranks.js";
import {
  expectClose,
  prepareRuns,
  stateFile,
  type Trained,
  tensorsOf,
  train,
  trainIn,
  weightsFile,
  writeRun,
} from "./strategy-runs.js";

prepareRuns();

describe("in bf16, with accumulation, recomputation and a tied head", () => {
  const options = {
    precision: "bf16",
    batch: { microBatch: 1, accumulation: 4 },
    recompute: "block",
    model: { ...tinyModel, tieEmbeddings: true },
    sample: { every: 8, prompts: ["The senate"], maxTokens: 6 },
  };
  const parallels = ["replicated", "zero1", "full_shard"] as const;
  const runs = new Map<string, Trained>();
  beforeAll(async () => {
    runs.set("alone", await train(1, { ...options, batch: { microBatch: 1, accumulation: 8 } }));
    for (const parallel of parallels) runs.set(parallel, await train(2, { ...options, parallel }));
  }, 120_000);

  test.each(parallels)("%s: the losses of one process", (parallel) => {
    const [mine, alone] = [runs.get(parallel) as Trained, runs.get("alone") as Trained];
    // bf16 weights: a difference in the last bit of a gradient moves some of them to the next
    // value.
    expectClose(mine.steps, alone.steps, 1e-3);
    expect(mine.stdout[0]).toContain("The senate");
  });

  test.each(parallels)(
    "%s: stopped and resumed, the bits of the unbroken run",
    async (parallel) => {
      const whole = runs.get(parallel) as Trained;
      const { file, out } = await writeRun(2, { ...options, parallel });
      await cp(whole.out, out, { recursive: true });
      await rm(join(out, "step-0000000008"), { recursive: true });
      const resumed = await trainIn(file, out, 2);
      expect(resumed.steps).toEqual(whole.steps);
      for (const name of [weightsFile, stateFile]) {
        expect((await fileOfStep(out, 8, name)).equals(await fileOfStep(whole.out, 8, name))).toBe(
          true,
        );
      }
    },
  );

  test.each([
    ["full_shard", 1, "replicated", 1],
    ["replicated", 2, "full_shard", 4],
    ["zero1", 4, "zero1", 2],
  ] as const)(
    "a checkpoint of %s goes on with %i processes, %s",
    async (from, worldSize, parallel, accumulation) => {
      const start = runs.get(from) as Trained;
      const batch = { microBatch: 1, accumulation: 8 / worldSize };
      expect(accumulation).toBeGreaterThan(0);
      const { file, out } = await writeRun(worldSize, {
        ...options,
        parallel,
        batch,
      });
      await cp(start.out, out, { recursive: true });
      await rm(join(out, "step-0000000008"), { recursive: true });
      const resumed = await trainIn(file, out, worldSize);
      expectClose(resumed.steps, start.steps, 1e-3);
      // The moments of the first four steps survive in those of the last four.
      const [mine, theirs] = [
        await tensorsOf(out, 8, stateFile),
        await tensorsOf(start.out, 8, stateFile),
      ];
      expect([...mine.keys()]).toEqual([...theirs.keys()]);
    },
  );
});
