import { cp, readdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { openCheckpoint } from "../../lib/checkpoint/load.js";
import { buildLibrary } from "../cli/build.js";
import { tinyData, tinyModel } from "../support/tiny-run.js";
import { expectCodes, figures, fileOfStep, runToEnd, stepsOf, writeConfig } from "./ranks.js";

let folder: string;
let data: string;
beforeAll(async () => {
  buildLibrary();
  ({ folder, data } = await tinyData());
});

/** Relative difference of losses between world sizes and strategies: f32 sums in another order. */
const bound = 2e-5;
/** The reduction in bf16 rounds each gradient once: 2^-9 relative. */
const bf16Bound = 2e-3;

type Figures = ReturnType<typeof figures>;

function expectClose(measured: Figures, reference: Figures, limit = bound): void {
  expect(measured.map(({ step, lr, tokens }) => [step, lr, tokens])).toEqual(
    reference.map(({ step, lr, tokens }) => [step, lr, tokens]),
  );
  for (const [index, { loss, gradNorm }] of measured.entries()) {
    const expected = reference[index] as Figures[number];
    const error = Math.abs(loss / expected.loss - 1);
    const normError = Math.abs(gradNorm / expected.gradNorm - 1);
    expect(error, `loss of step ${index + 1}: ${loss}, not ${expected.loss}`).toBeLessThan(limit);
    expect(normError, `norm of step ${index + 1}`).toBeLessThan(20 * limit);
  }
}

interface Trained {
  file: string;
  out: string;
  stdout: string[];
  steps: Figures;
  validation: number;
}

async function train(
  worldSize: number,
  overrides: Record<string, unknown> = {},
  perHost = worldSize,
): Promise<Trained> {
  const { file, out } = await writeConfig(folder, data, worldSize, overrides);
  return await trainIn(file, out, worldSize, perHost);
}

async function trainIn(file: string, out: string, worldSize: number, perHost = worldSize) {
  const results = await runToEnd(file, { worldSize, perHost });
  expectCodes(results, 0);
  const steps = await stepsOf(out);
  const stdout = results.map((result) => result.stdout);
  const validation = steps.at(-1)?.validation?.loss as number;
  return { file, out, stdout, steps: figures(steps), validation };
}

async function tensorsOf(out: string, step: number, file: string): Promise<Map<string, Buffer>> {
  const { tensors } = await openCheckpoint(join(out, `step-${String(step).padStart(10, "0")}`));
  const bytes = new Map<string, Buffer>();
  for (const [name, tensor] of tensors.get(file)?.tensors ?? []) {
    bytes.set(name, Buffer.from(await tensor.readBytes()));
  }
  return bytes;
}

const weightsFile = "model.safetensors";
const stateFile = "optimizer-state.safetensors";

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
      const { file, out } = await writeConfig(folder, data, 2, { ...options, parallel });
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
      const { file, out } = await writeConfig(folder, data, worldSize, {
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
      const { file, out } = await writeConfig(folder, data, ranks, of(ranks, parallel));
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
    const { file, out } = await writeConfig(folder, data, 1, of(1, "replicated"));
    await cp(whole.out, out, { recursive: true });
    await rm(join(out, "step-0000000008"), { recursive: true });
    const resumed = await trainIn(file, out, 1);
    expectClose(resumed.steps, whole.steps, 10 * bound);
  });
});
