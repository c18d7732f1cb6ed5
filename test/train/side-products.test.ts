import { cp, mkdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import type { StepMetrics } from "../../lib/train/metrics.js";
import { Trainer } from "../../lib/train/trainer.js";
import { buildLibrary } from "../cli/build.js";
import { lastStep, train, until, writeConfig } from "../support/child-run.js";
import { tinyConfig, tinyData, tinyModel } from "../support/tiny-run.js";

// Samples, validation and reports neither end a run nor cost the record of a step.

let folder: string;
let data: string;
beforeAll(async () => {
  buildLibrary();
  ({ folder, data } = await tinyData());
});

const short = { steps: 4, checkpoint: { every: 2 } };
const everyStep = { sample: { every: 1, prompts: ["The senate"], maxTokens: 24, topK: 0 } };

/** The steps of metrics.jsonl, one per line of the file. */
async function recorded(out: string): Promise<StepMetrics[]> {
  const lines = (await readFile(join(out, "metrics.jsonl"), "utf8")).trimEnd().split("\n");
  return lines.map((line) => JSON.parse(line) as StepMetrics);
}

async function run(overrides: object, name: string) {
  const notices: string[] = [];
  const out = join(folder, name);
  const trainer = await Trainer.create(tinyConfig(data, out, { ...short, ...overrides }), {
    onNotice: (text) => notices.push(text),
  });
  const steps: StepMetrics[] = [];
  return { out, notices, steps, trainer };
}

describe("samples", () => {
  test("of a model with more rows than the tokenizer has ids are text", async () => {
    const padded = { model: { ...tinyModel, vocabSize: 16_384 } };
    const { out, notices, steps, trainer } = await run({ ...everyStep, ...padded }, "padded");
    for await (const step of trainer.run()) steps.push(step);
    expect(notices).toEqual([]);
    const tokenizer = await Tokenizer.load(data);
    for (const step of await recorded(out)) {
      const text = step.samples?.[0]?.text as string;
      expect(text.length).toBeGreaterThan(0);
      expect(tokenizer.decode(await tokenizer.encode(text))).toBe(text);
    }
    expect((await recorded(out)).map(({ step }) => step)).toEqual([1, 2, 3, 4]);
    trainer.dispose();
  });

  test("that cannot be made are told once, and every step is recorded", async () => {
    const { out, notices, steps, trainer } = await run(everyStep, "failing");
    // A prompt that no tokenizer encodes. Untyped code may produce such a `config`.
    (trainer.config.sample.prompts as unknown[])[0] = 5;
    for await (const step of trainer.run()) steps.push(step);
    expect(notices).toEqual([
      expect.stringMatching(/^no samples after step 1: .*expected a string/),
    ]);
    expect((await recorded(out)).map(({ step }) => step)).toEqual([1, 2, 3, 4]);
    expect(trainer.result).toMatchObject({ finished: true, step: 4, samples: [] });
    trainer.dispose();
  });

  test("are made after the record of their step, which a kill meanwhile leaves", async () => {
    const slow = { sample: { every: 1, prompts: ["The senate"], maxTokens: 65_536, topK: 0 } };
    const { file, out } = await writeConfig({ folder, data }, "killed", { ...short, ...slow });
    const { child, ended } = train(file);
    await until(async () => (await lastStep(out)) > 0, child);
    child.kill("SIGKILL");
    expect((await ended).signal).toBe("SIGKILL");
    const steps = await recorded(out);
    expect(steps.map(({ step, samples }) => [step, samples])).toEqual([[1, undefined]]);
  });
});

test("validation that cannot be read is told once, and the run goes on", async () => {
  const damaged = join(folder, "damaged");
  await cp(data, damaged, { recursive: true });
  const overrides = { data: { train: { [damaged]: 1 } }, evaluate: { every: 1, batches: 2 } };
  const { out, notices, steps, trainer } = await run(overrides, "unread");
  const { splits } = JSON.parse(await readFile(join(damaged, "dataset.json"), "utf8"));
  await truncate(join(damaged, splits.validation.shards[0].file), 2);
  for await (const step of trainer.run()) steps.push(step);
  expect(notices).toEqual([expect.stringMatching(/^no validation after step 1: /)]);
  expect((await recorded(out)).map(({ step }) => step)).toEqual([1, 2, 3, 4]);
  expect(trainer.result).toMatchObject({ finished: true, validation: null });
  trainer.dispose();
});

describe("the command", () => {
  test("ends well where report.html or run.json cannot be written", async () => {
    const { file, out } = await writeConfig({ folder, data }, "blocked", {
      ...short,
      ...everyStep,
    });
    for (const name of ["report.html", "run.json"])
      await mkdir(join(out, name, "x"), { recursive: true });
    const { code, stderr, stdout } = await train(file).ended;
    expect(stderr).toMatch(/^note: run\.json cannot be written/m);
    expect(stderr).toMatch(/^note: no report: /m);
    expect(stdout).toMatch(/^done: /m);
    expect(code).toBe(0);
    expect((await recorded(out)).map(({ step }) => step)).toEqual([1, 2, 3, 4]);
  });

  test("needs the tokenizer's file at the start, and not after that", async () => {
    const own = join(folder, "own");
    await cp(data, own, { recursive: true });
    const trained = { ...short, ...everyStep, data: { train: { [own]: 1 } } };
    const { file, out } = await writeConfig({ folder, data }, "removed", trained);
    const trainer = await Trainer.create(tinyConfig(own, out, trained));
    const text = await readFile(join(own, "tokenizer.json"));
    await rm(join(own, "tokenizer.json"));
    for await (const _ of trainer.run());
    expect((await recorded(out)).map(({ step }) => step)).toEqual([1, 2, 3, 4]);
    trainer.dispose();
    const { code, stderr } = await train(file).ended;
    expect(code).toBe(3);
    expect(stderr).toContain("tokenizer.json");
    await writeFile(join(own, "tokenizer.json"), text);
    expect((await train(file).ended).code).toBe(0);
  });
});
