// docs/faults.md, row R4: options edited between two starts of a run. The resume reports them, and
// --resume-strict refuses them.
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { stringify } from "yaml";
import { runSchema } from "../../lib/config/index.js";
import { compareRecipes } from "../../lib/config/recipe.js";
import { pathName } from "../../lib/core/option-names.js";
import { leaves } from "../../lib/core/option-tree.js";
import { cosineSchedule } from "../../lib/optim/schedule.js";
import { readMetrics, readRunInfo } from "../../lib/train/metrics.js";
import { buildLibrary } from "../cli/build.js";
import { expectCodes, runToEnd, writeConfig as writeRankConfig } from "../dist/ranks.js";
import { train, writeConfig } from "../support/child-run.js";
import { tinyConfig, tinyData } from "../support/tiny-run.js";

let place: { folder: string; data: string };
beforeAll(async () => {
  buildLibrary();
  place = await tinyData();
});

const quiet = { checkpoint: { every: 0 }, evaluate: { every: 0 } };

test("more steps, another batch and beta2: each is told with what follows, and run.json keeps them", async () => {
  const { file, out } = await writeConfig(place, "edited", { ...quiet, steps: 6 });
  expect(await train(file).ended).toMatchObject({ code: 0 });
  expect((await readRunInfo(out)).changes).toBeUndefined();

  const overrides = {
    steps: 9,
    "optimizer.decaySteps": 9,
    "batch.microBatch": 8,
    "optimizer.beta2": 0.99,
  };
  const set = Object.entries(overrides).flatMap(([option, value]) => [
    "--set",
    `${option}=${value}`,
  ]);
  const strict = await train(file, [...set, "--resume-strict"]).ended;
  expect(strict.code).toBe(2);
  for (const [option, from, to] of [
    ["steps", 6, 9],
    ["batch.microBatch", 4, 8],
    ["optimizer.beta2", 0.95, 0.99],
    ["optimizer.decaySteps", 6, 9],
  ]) {
    expect(strict.stderr).toContain(
      `${option}: the checkpoint has ${from}, this run ${to}: --resume-strict`,
    );
  }
  expect((await readRunInfo(out)).changes).toBeUndefined();

  const { code, stderr, stdout } = await train(file, set).ended;
  expect(code, stderr).toBe(0);
  const { optimizer } = tinyConfig(place.data, out, { steps: 6 });
  const before = cosineSchedule(optimizer)(6).toExponential(3);
  const now = cosineSchedule({ ...optimizer, decaySteps: 9 })(6).toExponential(3);
  for (const line of [
    "the recipe has changed since step 6 was saved:",
    "steps: 6 in the checkpoint, 9 now",
    "batch.microBatch: 4 in the checkpoint, 8 now",
    "optimizer.beta2: 0.95 in the checkpoint, 0.99 now",
    `the learning rate of step 7 was to be ${before} and is ${now}`,
    "the learning rate reaches its end at step 9, not 6",
    "a step trains on 256 tokens, not 128: 8 windows",
    "the run ends after step 9, not 6",
    "moments gathered with beta2 0.95 fade",
    "the last bits differ",
  ]) {
    expect(stderr).toContain(line);
  }
  expect(stdout).toContain("going on from step 6");
  const steps = await readMetrics(join(out, "metrics.jsonl"));
  expect(steps[6]?.lr.toExponential(3)).toBe(now);
  expect(steps[6]?.tokens).toBe(6 * 128 + 256);

  const { changes = [], started } = await readRunInfo(out);
  expect(changes.map(({ step, option, from, to }) => [step, option, from, to])).toEqual([
    [6, "steps", 6, 9],
    [6, "batch.microBatch", 4, 8],
    [6, "optimizer.decaySteps", 6, 9],
    [6, "optimizer.beta2", 0.95, 0.99],
  ]);
  for (const { time } of changes) expect(time > started).toBe(true);

  // The checkpoint holds the new recipe. The same command continues without a note, also strictly,
  // and the history stays.
  const same = await train(file, [...set, "--resume-strict"]).ended;
  expect(same.code, same.stderr).toBe(0);
  expect(same.stderr).not.toContain("recipe");
  expect((await readRunInfo(out)).changes).toEqual(changes);
}, 120_000);

test("another model is told field by field; a history of another length by its option", async () => {
  const { file } = await writeConfig(place, "other", { ...quiet, steps: 3 });
  expect(await train(file).ended).toMatchObject({ code: 0 });
  const model = await train(file, ["--set", "model.layers=3", "--set", "model.intermediateSize=64"])
    .ended;
  expect(model.code).toBe(4);
  expect(model.stderr).toContain("model: it has intermediateSize 48, not 64, and layers 2, not 3");
  expect(model.stderr).not.toMatch(/[0-9a-f]{64}/);
  const window = await train(file, ["--set", "guard.window=64"]).ended;
  expect(window.code).toBe(2);
  expect(window.stderr).toContain(
    "guard.window: the checkpoint has 128, this run 64: the guard's history",
  );
}, 60_000);

test("other adapters and other weights of the data are told field by field too", async () => {
  const base = await writeConfig(place, "base", { ...quiet, steps: 3 });
  expect(await train(base.file).ended).toMatchObject({ code: 0 });
  const { model: _, ...rest } = tinyConfig(place.data, join(place.folder, "adapters"), {
    ...quiet,
    steps: 3,
  });
  const file = join(place.folder, "adapters.yaml");
  const init = { from: join(base.out, "step-0000000003") };
  await writeFile(file, stringify({ ...rest, init, lora: { rank: 2, alpha: 4 } }));
  expect(await train(file).ended).toMatchObject({ code: 0 });
  const adapters = await train(file, ["--set", "lora.alpha=8", "--set", "lora.rank=3"]).ended;
  expect(adapters.code).toBe(4);
  expect(adapters.stderr).toContain("lora: it has rank 2, not 3, and alpha 4, not 8\n");

  const weights = await train(base.file, ["--set", `data.train={${place.data}: 2}`]).ended;
  expect(weights.code).toBe(3);
  expect(weights.stderr).toContain(
    `was trained on other data (data.train: it has ${place.data} 1, not 2)`,
  );
}, 60_000);

test("over two ranks: their number is a change, and all of them refuse alike", async () => {
  const { file, out } = await writeRankConfig(place.folder, place.data, 2, { ...quiet, steps: 4 });
  expectCodes(await runToEnd(file, { worldSize: 2 }), 0);
  const strict = await runToEnd(file, {
    worldSize: 2,
    args: () => ["--resume-strict", "--set", "optimizer.weightDecay=0.2"],
  });
  expectCodes(strict, 2);
  for (const { stderr } of strict) {
    expect(stderr).toContain("optimizer.weightDecay: the checkpoint has 0.1, this run 0.2");
  }
  const alone = await train(file, ["--set", "steps=6"]).ended;
  expect(alone.code, alone.stderr).toBe(0);
  expect(alone.stderr).toContain("ranks: 2 in the checkpoint, 1 now");
  expect(alone.stderr).toContain("a step trains on 128 tokens, not 256");
  const info = JSON.parse(await readFile(join(out, "run.json"), "utf8"));
  expect(info.changes.map(({ option }: { option: string }) => option)).toContain("ranks");
}, 120_000);

test("only options that no trained number depends on go unnoticed", () => {
  const config = tinyConfig("data", "out");
  const before = { config, ranks: 1 };
  const unnoticed = [...leaves(runSchema)]
    .map(([path]) => path)
    .filter((path) => {
      const changed = structuredClone(config) as unknown as Record<string, unknown>;
      const owner = path.slice(0, -1).reduce<Record<string, unknown>>((at, key) => {
        at[key] ??= {};
        return at[key] as Record<string, unknown>;
      }, changed);
      owner[path.at(-1) as string] = "another value";
      return compareRecipes(before, { config: changed as never, ranks: 1 }).length === 0;
    })
    .map(pathName)
    .filter((option) => !option.startsWith("model."));
  expect(unnoticed.sort()).toEqual(
    [
      "canary.every",
      "checkpoint.every",
      "checkpoint.keepBest",
      "checkpoint.keepEvery",
      "checkpoint.keepLast",
      "data.hangSeconds",
      "data.maskDocuments",
      "data.prefetch",
      "data.resetPositions",
      "data.sequenceLength",
      "data.slowSeconds",
      "data.train",
      "distributed.startTimeoutSeconds",
      "distributed.timeoutSeconds",
      "evaluate.batches",
      "evaluate.data",
      "evaluate.every",
      "evaluate.fewShot",
      "evaluate.limit",
      "evaluate.tasks",
      "evaluate.tasksEvery",
      "init.from",
      "lora.alpha",
      "lora.rank",
      "lora.targets",
      "name",
      "out",
      "precision",
      "sample.every",
      "sample.maxTokens",
      "sample.prompts",
      "sample.temperature",
      "sample.topK",
      "sample.topP",
      "seed",
    ].sort(),
  );
});
