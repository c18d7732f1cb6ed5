/** Checkpoints of hybrid_shard: equal bits after a resume, and resumes by other strategies. */
import { cp, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { parse, stringify } from "yaml";
import { buildLibrary } from "../cli/build.js";
import { tinyData } from "../support/tiny-run.js";
import { expectCodes, figures, fileOfStep, runToEnd, stepsOf, writeConfig } from "./ranks.js";

let folder: string;
let data: string;
beforeAll(async () => {
  buildLibrary();
  ({ folder, data } = await tinyData());
});

const perHost = 2;
/** One recipe for runs of any length. */
const recipe = {
  optimizer: { peakLr: 5e-3, warmupSteps: 2, decaySteps: 100 },
  evaluate: { every: 0, batches: 4 },
};

/** Trains to a step from the newest checkpoint of `out`. */
async function train(to: number, worldSize: number, parallel: string, from?: string) {
  const { file, out } = await writeConfig(folder, data, worldSize, {
    ...recipe,
    parallel,
    steps: to,
  });
  if (from) await cp(from, out, { recursive: true });
  expectCodes(await runToEnd(file, { worldSize, perHost }), 0);
  return { file, out, steps: figures(await stepsOf(out)) };
}

const stateOf = (out: string, step: number) =>
  Promise.all(
    ["model.safetensors", "optimizer-state.safetensors"].map((name) => fileOfStep(out, step, name)),
  );

test("stopped and resumed, the bits of the unbroken run; its checkpoint goes on with every other strategy", async () => {
  const whole = await train(8, 4, "hybrid_shard");
  const half = join(folder, "half");
  await cp(whole.out, half, { recursive: true });
  await rm(join(half, "step-0000000008"), { recursive: true });
  const resumed = await train(8, 4, "hybrid_shard", half);
  expect(resumed.steps).toEqual(whole.steps);
  expect(await stateOf(resumed.out, 8)).toEqual(await stateOf(whole.out, 8));

  // Two ranks continue from the checkpoint, then four with another strategy, then hybrid_shard
  // again, then one rank alone.
  let { out } = whole;
  let { steps } = whole;
  for (const [to, worldSize, parallel] of [
    [12, 2, "zero1"],
    [16, 4, "full_shard"],
    [20, 4, "hybrid_shard"],
    [24, 1, "replicated"],
    [28, 4, "hybrid_shard"],
  ] as const) {
    ({ out, steps } = await train(to, worldSize, parallel, out));
  }
  const alone = await train(28, 1, "replicated");
  expect(steps.map(({ step, lr, tokens }) => [step, lr, tokens])).toEqual(
    alone.steps.map(({ step, lr, tokens }) => [step, lr, tokens]),
  );
  for (const [i, { loss, gradNorm }] of steps.entries()) {
    const expected = alone.steps[i] as (typeof steps)[number];
    expect(Math.abs(loss / expected.loss - 1), `loss of step ${i + 1}`).toBeLessThan(2e-5);
    expect(Math.abs(gradNorm / expected.gradNorm - 1)).toBeLessThan(4e-4);
  }
}, 400_000);

test("a checkpoint of another model, and one that is asked for in vain, end all ranks with the same words", async () => {
  const { file, out } = await writeConfig(folder, data, 2, { ...recipe, steps: 4 });
  expectCodes(await runToEnd(file, { worldSize: 2 }), 0);
  const config = parse(await readFile(file, "utf8"));
  const model = { ...config.model, layers: 4 };
  await writeFile(file, stringify({ ...config, model, parallel: "full_shard", steps: 8 }));
  const results = await runToEnd(file, { worldSize: 2 });
  expectCodes(results, 4);
  for (const { stderr } of results) {
    expect(stderr).toMatch(
      /step-0000000004 is from a different run:\n {2}model: it has layers 3, not 4\n/,
    );
  }
  // The checkpoint is unchanged.
  expect((await stepsOf(out)).at(-1)?.step).toBe(4);

  const nowhere = await runToEnd(file, { worldSize: 2, args: () => ["--resume", "none"] });
  expectCodes(nowhere, 2);
  for (const { stderr } of nowhere)
    expect(stderr).toContain("holds 1 checkpoints of an earlier run");
}, 180_000);
