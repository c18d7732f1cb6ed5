import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { UsageError } from "../../lib/core/errors.js";
import { chartData, readRun, samplesByStep, summarise } from "../../lib/report/events.js";
import { fakeSteps, writeFakeRun } from "./fake-run.js";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "report-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

describe("readRun", () => {
  it("reads what the trainer wrote", async () => {
    const steps = fakeSteps(20);
    await writeFakeRun(folder, steps);
    const run = await readRun(folder);
    expect(run.steps).toEqual(steps);
    expect(run.info.config.name).toBe("quickstart");
  });

  it("refuses a missing folder, a folder of something else and a run without steps", async () => {
    await expect(readRun(join(folder, "none"))).rejects.toThrow(UsageError);
    await expect(readRun(folder)).rejects.toThrow("is not the folder of a run");
    writeFileSync(join(folder, "run.json"), "{");
    await expect(readRun(folder)).rejects.toThrow("run.json");
    await writeFakeRun(folder, []);
    await expect(readRun(folder)).rejects.toThrow("no step has been recorded");
  });
});

it("summarises a run", async () => {
  await writeFakeRun(folder, fakeSteps(950));
  const summary = summarise(await readRun(folder));
  expect(summary).toMatchObject({ step: 950, tokens: 950 * 2048, skipped: 2 });
  expect(summary.finalLoss).toBeCloseTo(3.4, 1);
  expect(summary.validation?.loss).toBeCloseTo(3.52, 1);
  expect(summary.trainingSeconds).toBeCloseTo(950 * 0.23, 0);
  expect(summary.tokensPerSecond).toBeCloseTo(8800, -3);
});

describe("chartData", () => {
  it("keeps every step of a short run, gaps included", () => {
    const steps = fakeSteps(50);
    steps[10]!.loss = Number.NaN;
    const data = chartData(steps);
    expect(data.step).toEqual(steps.map(({ step }) => step));
    expect(data.loss[10]).toBeNull();
    expect(data.loss[11]).toBeCloseTo(steps[11]!.loss, 4);
  });

  it("thins a long run out without losing its end, its validation or its skips", () => {
    const steps = fakeSteps(10_000);
    const data = chartData(steps, 1000);
    expect(data.step).toHaveLength(1000);
    expect(data.step.at(-1)).toBe(10_000);
    expect(data.loss).toHaveLength(1000);
    expect(data.validation.filter((loss) => loss !== null)).toHaveLength(100);
    expect(data.skipped.map(({ step }) => step)).toEqual([300, 612]);
    expect(data.rssBytes[0]).toBe(Math.max(...steps.slice(0, 10).map(({ rssBytes }) => rssBytes)));
  });
});

it("lists samples with the newest first", () => {
  expect(samplesByStep(fakeSteps(800)).map(({ step }) => step)).toEqual([750, 500, 250]);
});
