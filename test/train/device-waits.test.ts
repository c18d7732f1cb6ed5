import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep, setImmediate as turn } from "node:timers/promises";
import { beforeAll, describe, expect, test } from "vitest";
import { synchronize } from "../../lib/core/runtime.js";
import { writeReport } from "../../lib/index.js";
import { Llama } from "../../lib/model/llama.js";
import { AdamW } from "../../lib/optim/adamw.js";
import { DeviceWaits, describeWaits, noWaits } from "../../lib/train/device-waits.js";
import { HostMeter } from "../../lib/train/host-meter.js";
import { readMetrics, type StepMetrics } from "../../lib/train/metrics.js";
import { describeTimes } from "../../lib/train/run-times.js";
import { trainStep } from "../../lib/train/step.js";
import { Trainer } from "../../lib/train/trainer.js";
import { tinyConfig, tinyData } from "../support/tiny-run.js";

/** A micro-batch by its times: waiting for data from..to, enqueuing from..to. */
const pass = (data: [number, number], recorded: [number, number]) => ({
  data: { from: data[0], to: data[1] },
  checks: null,
  recorded: { from: recorded[0], to: recorded[1] },
});

describe("the device's waits", () => {
  test("none while there is a micro-batch in the queue", () => {
    const waits = new DeviceWaits(0);
    waits.step([pass([0, 0], [0, 10])], [100]);
    const step = waits.step([pass([20, 30], [30, 40]), pass([40, 60], [60, 70])], [180, 260]);
    expect(step).toEqual({ data: 0, checks: 0, host: 0, recording: 0 });
  });

  test("from the device's last work to the next, by what the host did meanwhile", () => {
    const waits = new DeviceWaits(0);
    waits.step([pass([0, 0], [0, 10])], [100]);
    // The device is idle 100..150. The host waits for data 90..130 and enqueues 150..155.
    const step = waits.step([pass([90, 130], [150, 155])], [200]);
    expect(step).toEqual({ data: 30, checks: 0, host: 20, recording: 5 });
  });

  test("while recording are only possible, and end when the recording does", () => {
    const waits = new DeviceWaits(0);
    waits.step([pass([0, 0], [0, 10])], [30]);
    // The device finishes its work at 30, during the recording of the next micro-batch, 20..50.
    const step = waits.step([pass([10, 20], [20, 50])], [80]);
    expect(step).toEqual({ data: 0, checks: 0, host: 0, recording: 20 });
  });

  test("checks are told apart, and a pause is none", () => {
    const waits = new DeviceWaits(0);
    const checked = { ...pass([0, 10], [40, 41]), checks: { from: 10, to: 40 } };
    expect(waits.step([checked], [50])).toMatchObject({ data: 10, checks: 30, host: 0 });
    waits.paused(90);
    expect(waits.step([pass([90, 92], [95, 95])], [99])).toMatchObject({ data: 2, host: 3 });
  });

  test("are told as shares, without what is next to nothing", () => {
    const totals = { ...noWaits(), data: 1, host: 4, save: 30, validation: 100, recording: 0.3 };
    expect(describeWaits(totals, 1000)).toBe(
      "the device waited 3.5% of the time: data 0.1%, host 0.4%, saves 3.0%, validation 10.0%",
    );
    expect(describeWaits(noWaits(), 1000)).toBe("the device waited 0.0% of the time");
  });
});

test("a step that waits for its data says so, in its middle too", async () => {
  const model = await Llama.create(tinyConfig("data", "out").model, { dtype: "bf16", seed: 1 });
  const optimizer = new AdamW(model.store);
  const ids = new Int32Array(64).fill(7);
  const nextBatch = async () => {
    // All work is done before the wait begins, so the device waits for all of it.
    await synchronize(model.device);
    await sleep(30);
    return { inputs: ids, targets: ids, count: 2 };
  };
  await synchronize(model.device);
  const waits = new DeviceWaits(performance.now());
  const options = { model, optimizer, nextBatch, accumulation: 3, lr: 1e-3, clip: 1 };
  const { figures, clock, dataWaitMs } = await trainStep(options);
  const { reached, at } = await figures;
  expect(reached).toHaveLength(3);
  expect(at).toBe(reached[2]);
  const { data, checks } = waits.step(clock.passes, reached);
  expect(data).toBeGreaterThanOrEqual(3 * 29);
  // Both are sums of the same intervals in another order, so the last digits may differ.
  expect(data).toBeLessThanOrEqual(dataWaitMs + 1e-6);
  expect(checks).toBe(0);
  for (const part of ["forward", "backward", "optimizer"] as const)
    expect(clock.recordingMs[part]).toBeGreaterThan(0);
  optimizer.dispose();
  model.dispose();
});

test("V8's collections are counted by kind", async () => {
  const meter = new HostMeter();
  let minor = 0;
  let held: object[] = [];
  while (minor === 0) {
    held = Array.from({ length: 200_000 }, (_, i) => ({ i }));
    await turn();
    const lap = meter.lap();
    minor += lap.minor.count;
    expect(lap.activeMs).toBeGreaterThan(0);
  }
  expect(held).toHaveLength(200_000);
  meter.stop();
});

describe("a run", () => {
  let folder: string;
  let data: string;
  beforeAll(async () => {
    ({ folder, data } = await tinyData());
  });

  test("records waits, pauses and the main thread's time; the report shows them", async () => {
    const out = join(folder, "run");
    const sample = { every: 6, prompts: ["The senate"], maxTokens: 4 };
    const batch = { microBatch: 2, accumulation: 2 };
    const trainer = await Trainer.create(
      tinyConfig(data, out, { sample, batch, canary: { every: 4 } }),
    );
    expect(trainer.result.times).toBe(null);
    const steps: StepMetrics[] = [];
    for await (const step of trainer.run()) steps.push(step);
    expect(await readMetrics(join(out, "metrics.jsonl"))).toEqual(steps);
    const named = (part: "save" | "validation" | "samples") =>
      steps.filter(({ pauseMs }) => pauseMs?.[part] !== undefined).map(({ step }) => step);
    expect(named("save")).toEqual([5, 10]);
    expect(named("validation")).toEqual([5, 10, 12]);
    expect(named("samples")).toEqual([6, 12]);
    for (const { deviceWaitMs, host } of steps) {
      for (const ms of Object.values(deviceWaitMs ?? {})) expect(ms).toBeGreaterThanOrEqual(0);
      expect(host?.forwardMs).toBeGreaterThan(0);
      expect(host?.backwardMs).toBeGreaterThan(0);
      expect(host?.metricsMs).toBeGreaterThan(0);
    }
    const { times } = trainer.result;
    if (times === null) throw new Error("no times after the run");
    expect(times.steps).toBe(12);
    const { waitMs } = times;
    expect(Object.values(waitMs).reduce((sum, ms) => sum + ms, 0)).toBeLessThan(times.ms);
    // The canary's passes and hashes come at steps 4, 8 and 12.
    const checked = steps.filter(({ deviceWaitMs }) => (deviceWaitMs?.checks ?? 0) > 0);
    expect(checked.map(({ step }) => step)).toEqual([4, 8, 12]);
    // No step's record has the last save.
    const saves = steps.reduce((sum, { pauseMs }) => sum + (pauseMs?.save ?? 0), 0);
    expect(waitMs.save).toBeGreaterThan(saves);
    const [waited, host] = describeTimes(times);
    expect(waited).toMatch(/^the device waited \d+\.\d% of the time: .*saves \d/);
    expect(host).toMatch(/^JavaScript [\d.]+ ms a step: forward .* minor and .* major collections/);
    expect(await readFile(await writeReport(out), "utf8")).toMatch(
      /<dt>device waited<\/dt><dd>[\d.]+%<\/dd><small>.*saves \d/,
    );
    trainer.dispose();
  });
});
