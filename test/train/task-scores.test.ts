import { rename } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { loadModel } from "../../lib/checkpoint/model.js";
import { ConfigError } from "../../lib/core/errors.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { evaluate } from "../../lib/eval/evaluate.js";
import { readMetrics } from "../../lib/train/metrics.js";
import { Trainer, type TrainerOptions } from "../../lib/train/trainer.js";
import { buildLibrary } from "../cli/build.js";
import { expectCodes, runToEnd, stepsOf, writeConfig } from "../dist/ranks.js";
import { writeRows } from "../eval/rows-of-tests.js";
import { tinyConfig, tinyData, tinyModel } from "../support/tiny-run.js";

// Scores on tasks while a model trains.

let folder: string;
let data: string;
let rows: string;
beforeAll(async () => {
  buildLibrary();
  ({ folder, data } = await tinyData());
  rows = join(folder, "rows");
  await writeRows(rows);
});

const tasks = ["arc_easy", "piqa"];
/** Contexts of 128 tokens hold the rows' prompts; fp32, so that ranks and strategies agree. */
const recipe = () => ({
  steps: 4,
  precision: "fp32",
  model: { ...tinyModel, contextLength: 128 },
  data: { train: { [data]: 1 }, sequenceLength: 32 },
  checkpoint: { every: 2 },
  evaluate: { every: 0, batches: 2, tasks, tasksEvery: 2, data: rows },
});

async function run(name: string, overrides: object, options: TrainerOptions = {}) {
  const notices: string[] = [];
  const out = join(folder, name);
  const trainer = await Trainer.create(tinyConfig(data, out, { ...recipe(), ...overrides }), {
    onNotice: (text) => notices.push(text),
    ...options,
  });
  for await (const _ of trainer.run());
  trainer.dispose();
  return { out, notices, result: trainer.result };
}

const scoresOf = async (out: string) =>
  (await readMetrics(join(out, "metrics.jsonl"))).map(({ step, scores }) => [step, scores]);

describe("scores on tasks", () => {
  test("are recorded with their steps, equal to those of the checkpoint", async () => {
    const { out, notices, result } = await run("alone", {});
    expect(notices).toEqual([]);
    const recorded = await scoresOf(out);
    expect(recorded.map(([step, scores]) => [step, scores !== undefined])).toEqual([
      [1, false],
      [2, true],
      [3, false],
      [4, true],
    ]);
    const model = await loadModel(join(out, "step-0000000002"));
    const { results } = await evaluate(model, tasks, {
      tokenizer: await Tokenizer.load(data),
      data: rows,
    });
    model.dispose();
    expect(recorded[1]?.[1]).toEqual(
      tasks.map((task) => ({
        task,
        metric: "acc_norm",
        value: results[task]?.["acc_norm,none"],
        error: results[task]?.["acc_norm_stderr,none"],
      })),
    );
    expect(result.scores).toEqual(recorded[3]?.[1]);
  });

  test("of a task without rows are told once, by name, and the run goes on with the others", async () => {
    const hidden = join(folder, "hidden");
    await rename(join(rows, "piqa"), hidden);
    const { out, notices, result } = await run("missing", {});
    await rename(hidden, join(rows, "piqa"));
    expect(result.finished).toBe(true);
    expect(notices).toEqual([
      expect.stringMatching(/^no score of piqa for now: .*piqa/),
      expect.stringMatching(/^no score of piqa after step 2: .*; training goes on$/),
    ]);
    const last = (await readMetrics(join(out, "metrics.jsonl"))).at(-1);
    expect(last?.scores?.map(({ task }) => task)).toEqual(["arc_easy"]);
  });

  test("of an unknown task are refused before the training, and change no trained number", async () => {
    const unknown = { evaluate: { ...recipe().evaluate, tasks: ["hellaswg"] } };
    await expect(run("unknown", unknown)).rejects.toThrow(ConfigError);
    await expect(run("unknown", unknown)).rejects.toThrow(/evaluate\.tasks: .*hellaswag/);
    const plain = await run("plain", { evaluate: { every: 0, batches: 2 } });
    const losses = async (out: string) =>
      (await readMetrics(join(out, "metrics.jsonl"))).map(({ loss }) => loss);
    expect(await losses(join(folder, "alone"))).toEqual(await losses(plain.out));
  });

  test.each(["replicated", "full_shard"])("are equal on two ranks, %s", async (parallel) => {
    const { file, out } = await writeConfig(folder, data, 2, { ...recipe(), parallel });
    expectCodes(await runToEnd(file, { worldSize: 2 }), 0);
    const steps = await stepsOf(out);
    expect(steps.map(({ scores }) => scores?.length)).toEqual([undefined, 2, undefined, 2]);
    const model = await loadModel(join(out, "step-0000000004"));
    const { results } = await evaluate(model, tasks, {
      tokenizer: await Tokenizer.load(data),
      data: rows,
    });
    model.dispose();
    expect(steps[3]?.scores?.map(({ value }) => value)).toEqual(
      tasks.map((task) => results[task]?.["acc_norm,none"]),
    );
  });
});
