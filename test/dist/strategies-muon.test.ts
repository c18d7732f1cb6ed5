// Strategies with Muon, whose matrices lie across the parts of the ranks.
import { cp, rm } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { fileOfStep } from "./ranks.js";
import {
  bound,
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

describe("with Muon, whose matrices lie across the parts of the ranks", () => {
  const options = {
    optimizer: { type: "muon", peakLr: 5e-3, warmupSteps: 2 },
    guard: { zGradNorm: 100 },
  };
  const runs = new Map<string, Trained>();
  const of = (worldSize: number, parallel: string) => ({
    ...options,
    parallel,
    batch: { microBatch: 8 / worldSize, accumulation: 1 },
    ...(parallel === "hybrid_shard" && { distributed: { shardSize: 2 } }),
  });
  const cases = [
    [2, "replicated"],
    [2, "zero1"],
    [2, "full_shard"],
    [4, "full_shard"],
    [4, "hybrid_shard"],
  ] as const;
  beforeAll(async () => {
    runs.set("alone", await train(1, of(1, "replicated")));
    for (const [ranks, parallel] of cases) {
      runs.set(`${ranks} ${parallel}`, await train(ranks, of(ranks, parallel)));
    }
  }, 240_000);

  test.each(cases)(
    "%i ranks, %s: the losses and the state of one process",
    async (ranks, parallel) => {
      const [mine, alone] = [runs.get(`${ranks} ${parallel}`), runs.get("alone")] as [
        Trained,
        Trained,
      ];
      // The iteration makes more of a difference in the last bits than AdamW does.
      expectClose(mine.steps, alone.steps, 10 * bound);
      const [state, reference] = [
        await tensorsOf(mine.out, 8, stateFile),
        await tensorsOf(alone.out, 8, stateFile),
      ];
      expect([...state].map(([name, bytes]) => [name, bytes.length])).toEqual(
        [...reference].map(([name, bytes]) => [name, bytes.length]),
      );
    },
  );

  test.each(cases.slice(0, 3))(
    "%i ranks, %s: resumed, the bits of the unbroken run",
    async (ranks, parallel) => {
      const whole = runs.get(`${ranks} ${parallel}`) as Trained;
      const { file, out } = await writeRun(ranks, of(ranks, parallel));
      await cp(whole.out, out, { recursive: true });
      await rm(join(out, "step-0000000008"), { recursive: true });
      const resumed = await trainIn(file, out, ranks);
      expect(resumed.steps).toEqual(whole.steps);
      for (const name of [weightsFile, stateFile]) {
        expect((await fileOfStep(out, 8, name)).equals(await fileOfStep(whole.out, 8, name))).toBe(
          true,
        );
      }
    },
  );

  test("a checkpoint of divided state goes on alone", async () => {
    const whole = runs.get("2 full_shard") as Trained;
    const { file, out } = await writeRun(1, of(1, "replicated"));
    await cp(whole.out, out, { recursive: true });
    await rm(join(out, "step-0000000008"), { recursive: true });
    const resumed = await trainIn(file, out, 1);
    expectClose(resumed.steps, whole.steps, 10 * bound);
  });
});
