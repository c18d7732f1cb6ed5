import { spawnSync } from "node:child_process";
import {
  appendFileSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { parseConfig } from "../../lib/config/index.js";
import { decidePrecision } from "../../lib/config/precision.js";
import { UsageError } from "../../lib/core/errors.js";
import {
  encodeStep,
  MetricsWriter,
  readMetrics,
  readRunInfo,
  type StepMetrics,
  writeRunInfo,
} from "../../lib/train/metrics.js";
import { buildLibrary, importOf } from "../cli/build.js";

let folder: string;
let file: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "metrics-"));
  file = join(folder, "run", "metrics.jsonl");
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

function stepMetrics(step: number, more: Partial<StepMetrics> = {}): StepMetrics {
  return {
    step,
    tokens: step * 2048,
    loss: 8 / Math.sqrt(step),
    lr: 1e-3,
    gradNorm: 0.5,
    tokensPerSecond: 9000,
    stepMs: 227,
    dataWaitMs: 0.1,
    deviceBytes: 1e8,
    rssBytes: 3e8,
    time: new Date(1.7e12 + step * 227).toISOString(),
    ...more,
  };
}

async function record(from: number, to: number): Promise<void> {
  const writer = await MetricsWriter.open(file, from);
  for (let step = from + 1; step <= to; step++) writer.write(stepMetrics(step));
  await writer.close();
}

const stepsIn = async () => (await readMetrics(file)).map(({ step }) => step);

describe("metrics.jsonl", () => {
  it("holds one object a step, and gives it back", async () => {
    const special = stepMetrics(3, {
      loss: Number.NaN,
      gradNorm: Number.POSITIVE_INFINITY,
      skipped: "loss is not finite",
      validation: { loss: 4.5, bitsPerByte: null },
      samples: [{ prompt: "a\nb", text: "\u2028</script>" }],
    });
    const writer = await MetricsWriter.open(file, 0);
    writer.write(stepMetrics(1));
    writer.write(stepMetrics(2));
    writer.write(special);
    await writer.close();
    expect(readFileSync(file, "utf8").trimEnd().split("\n")).toHaveLength(3);
    const back = await readMetrics(file);
    expect(back[0]).toEqual(stepMetrics(1));
    expect(back[2]).toEqual({ ...special, gradNorm: Number.NaN });
  });

  it("takes a step's record again with what was made after it, in its place", async () => {
    const samples = [{ prompt: "a", text: "b" }];
    const writer = await MetricsWriter.open(file, 0);
    for (const step of [1, 2, 3]) {
      writer.write(stepMetrics(step));
      // The first record is written at once, the others when it is in the file.
      if (step > 1) await writer.flush();
      if (step > 1) expect(await stepsIn()).toHaveLength(step);
      writer.amend(stepMetrics(step, { samples }));
    }
    writer.write(stepMetrics(4));
    await writer.close();
    expect(readFileSync(file, "utf8").trimEnd().split("\n")).toHaveLength(4);
    expect((await readMetrics(file)).map((step) => step.samples)).toEqual([
      samples,
      samples,
      samples,
      undefined,
    ]);
  });

  it("goes on after a resume without the steps that will be repeated", async () => {
    await record(0, 10);
    await record(6, 9);
    expect(await stepsIn()).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9]);
    await record(0, 2);
    expect(await stepsIn()).toEqual([1, 2]);
  });

  it("is read in spite of a torn last line, and resumed behind it", async () => {
    await record(0, 5);
    appendFileSync(file, encodeStep(stepMetrics(6)).slice(0, 40));
    expect(await stepsIn()).toEqual([1, 2, 3, 4, 5]);
    await record(5, 7);
    expect(await stepsIn()).toEqual([1, 2, 3, 4, 5, 6, 7]);
  });

  it("lets the repetition count where a file was not cut", async () => {
    await record(0, 5);
    for (const step of [3, 4]) appendFileSync(file, encodeStep(stepMetrics(step, { loss: 1 })));
    const steps = await readMetrics(file);
    expect(steps.map(({ step, loss }) => [step, loss === 1])).toEqual([
      [1, false],
      [2, false],
      [3, true],
      [4, true],
    ]);
  });

  it("skips lines that are no step", async () => {
    await record(0, 1);
    appendFileSync(file, 'null\n[]\n{"step":"x"}\n\n{"a":1}\n');
    expect(await stepsIn()).toEqual([1]);
  });

  it("reads the steps before megabytes of zeros that a crash has left, and those behind them", async () => {
    mkdirSync(join(folder, "run"));
    writeFileSync(file, encodeStep(stepMetrics(1)));
    truncateSync(file, 64_000_000);
    appendFileSync(file, `\n${encodeStep(stepMetrics(2))}`);
    truncateSync(file, 128_000_000);
    expect((await readMetrics(file)).map(({ step }) => step)).toEqual([1, 2]);
    const writer = await MetricsWriter.open(file, 2, (message) => expect.fail(message));
    writer.write(stepMetrics(3));
    await writer.close();
    expect((await readMetrics(file)).map(({ step }) => step)).toEqual([1, 2, 3]);
  }, 30_000);

  it("names the file that cannot be read", async () => {
    await expect(readMetrics(file)).rejects.toThrow(UsageError);
    await expect(readMetrics(file)).rejects.toThrow(file);
  });
});

describe("a disk that refuses", () => {
  it("is one warning and never an exception, and lines come later if it recovers", async () => {
    mkdirSync(file, { recursive: true });
    const warnings: string[] = [];
    const writer = await MetricsWriter.open(file, 0, (message) => warnings.push(message));
    for (let step = 1; step <= 20; step++) writer.write(stepMetrics(step));
    await writer.flush();
    expect(warnings).toHaveLength(1);
    expect(warnings[0]).toContain(file);
    expect(warnings[0]).toContain("training goes on");

    rmSync(file, { recursive: true });
    writer.write(stepMetrics(21));
    await writer.close();
    expect(await stepsIn()).toEqual(Array.from({ length: 21 }, (_, i) => i + 1));
  });

  it("full: writing goes on behind, memory stays bounded", async () => {
    const warnings: string[] = [];
    const full = await MetricsWriter.open("/dev/full", 0, (message) => warnings.push(message));
    const text = "x".repeat(1_000_000);
    for (let step = 1; step <= 40; step++) {
      full.write(stepMetrics(step, { samples: [{ prompt: "", text }] }));
      await full.flush();
    }
    await full.close();
    expect(warnings.join()).toMatch(/ENOSPC|EACCES|EPERM/);
    // Records that were held back, and records that were dropped.
    expect(warnings.at(-1)).toBe("/dev/full lacks 40 steps, which could not be written");
  });

  it("limited in size (EFBIG): the process lives and its whole lines are readable", async () => {
    buildLibrary();
    const run = join(folder, "run.mjs");
    writeFileSync(
      run,
      `import { MetricsWriter } from ${importOf("train/metrics.js")};
       const step = ${JSON.stringify(stepMetrics(1))};
       const writer = await MetricsWriter.open(${JSON.stringify(file)}, 0);
       for (let i = 1; i <= 100; i++) { writer.write({ ...step, step: i }); await writer.flush(); }
       await writer.close();
       console.log("alive");`,
    );
    const command = `trap '' XFSZ; ulimit -f 8; exec "${process.execPath}" "${run}"`;
    const result = spawnSync("bash", ["-c", command], { encoding: "utf8" });
    expect(result.stdout).toBe("alive\n");
    expect(result.stderr).toMatch(/EFBIG|file too large/i);
    const steps = await stepsIn();
    expect(steps.length).toBeGreaterThan(10);
    expect(steps).toEqual(Array.from({ length: steps.length }, (_, i) => i + 1));
  });
});

describe("run.json", () => {
  it("comes back as written", async () => {
    const info = {
      config: decidePrecision(
        parseConfig("steps: 9\nmodel: {preset: quickstart}\ndata: {train: {a: 1}}"),
        null,
      ),
      deviceName: "cpu",
      worldSize: 1,
      parameters: 5,
      versions: { node: process.version },
      started: "2026-01-01T00:00:00.000Z",
    };
    await writeRunInfo(folder, info);
    expect(await readRunInfo(folder)).toEqual(info);
  });

  it("missing means that this is not a run", async () => {
    await expect(readRunInfo(folder)).rejects.toThrow("is not the folder of a run");
  });
});
