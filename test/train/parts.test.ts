/** A Trainer of parts of one's own. */
import { describe, expect, test, vi } from "vitest";
import { ArgumentError, DivergedError, UsageError } from "../../lib/core/errors.js";
import type { HostBatch } from "../../lib/model/batch.js";
import { Llama } from "../../lib/model/llama.js";
import { presets } from "../../lib/model/presets.js";
import { AdamW } from "../../lib/optim/adamw.js";
import type { StepMetrics } from "../../lib/train/metrics.js";
import { trainStep } from "../../lib/train/step.js";
import { type Progress, Trainer, type TrainerParts } from "../../lib/train/trainer.js";

const shape = { ...presets.quickstart, layers: 1, vocabSize: 64, hiddenSize: 64, heads: 1 };
const config = { ...shape, kvHeads: 1, intermediateSize: 64 };
const ids = Int32Array.from({ length: 32 }, (_, i) => (i * 5) % 64);
const batch: HostBatch = { inputs: ids, targets: ids, count: 2 };

async function partsOf(more: Partial<TrainerParts> = {}): Promise<TrainerParts> {
  const model = await Llama.create(config, { seed: 2 });
  const optimizer = new AdamW(model.store);
  const batches = { next: async () => batch };
  return { model, optimizer, batches, schedule: () => 1e-3, steps: 4, ...more };
}

async function train(more: Partial<TrainerParts> = {}) {
  const trainer = new Trainer(await partsOf(more));
  const steps: StepMetrics[] = [];
  for await (const step of trainer.run()) steps.push(step);
  trainer.dispose();
  return { steps, result: trainer.result, trainer };
}

describe("a trainer of parts", () => {
  test("trains with a schedule, figures and callbacks of one's own", async () => {
    const heard: string[] = [];
    const { steps, result } = await train({
      schedule: (step) => 0.01 / (step + 1),
      accumulation: 3,
      extraMetrics: (step) => ({ twice: 2 * step }),
      onStep: ({ step }) => heard.push(`step ${step}`),
      validate: { every: 2, measure: async (step) => ({ loss: step, bitsPerByte: null }) },
      onValidation: ({ loss }, step) => heard.push(`validation ${loss} after ${step}`),
      sample: { every: 0, write: async () => [{ prompt: "a", text: "b" }] },
    });
    expect(steps.map(({ lr }) => lr)).toEqual([0.01, 0.01 / 2, 0.01 / 3, 0.01 / 4]);
    expect(steps.map(({ extra }) => extra?.twice)).toEqual([2, 4, 6, 8]);
    expect(steps.at(-1)).toMatchObject({ tokens: 4 * 3 * 32, step: 4 });
    expect(steps.at(-1)?.loss).toBeLessThan(steps[0]?.loss as number);
    expect(heard).toEqual([
      "step 1",
      "validation 2 after 2",
      "step 2",
      "step 3",
      "validation 4 after 4",
      "step 4",
    ]);
    expect(result).toMatchObject({ finished: true, checkpoint: null });
    expect(result.samples).toEqual([{ prompt: "a", text: "b" }]);
  });

  test("saves where its saver is told to, at the end too, and goes on from its progress", async () => {
    const saved: Progress[] = [];
    const saver = {
      every: 2,
      checkpoint: null,
      failure: null,
      save: async (progress: Progress) => void saved.push({ ...progress, skips: [] }),
      finish: async () => {},
    };
    await train({ saver, steps: 5 });
    expect(saved.map(({ step }) => step)).toEqual([2, 4, 5]);
    expect(saved[0]).toMatchObject({ tokens: 64, position: 4 });
    const { steps } = await train({ steps: 7, progress: saved[2] as Progress });
    expect(steps.map(({ step, tokens }) => [step, tokens])).toEqual([
      [6, 6 * 32],
      [7, 7 * 32],
    ]);
  });

  test("ends by a signal after the running step, and as soon as a saver has nothing to save", async () => {
    const controller = new AbortController();
    const closed: string[] = [];
    const { result } = await train({
      steps: 1000,
      signal: controller.signal,
      onStep: ({ step }) => step === 3 && controller.abort(),
      close: async () => void closed.push("closed"),
    });
    expect(result.finished).toBe(false);
    expect(result.step).toBeLessThan(8);
    expect(closed).toEqual(["closed"]);
    const broken = {
      every: 1,
      checkpoint: null,
      failure: null,
      save: async () => {
        throw new DivergedError("step 1: not finite");
      },
      finish: async () => {},
    };
    await expect(train({ saver: broken })).rejects.toThrow(/step 1: not finite/);
  });

  test("refuses an optimizer of another model, which would train nothing here", async () => {
    const [parts, other] = [await partsOf(), await partsOf()];
    expect(() => new Trainer({ ...parts, optimizer: other.optimizer })).toThrow(/another model/);
    const { optimizer } = other;
    const { model, batches } = parts;
    const nextBatch = () => batches.next();
    const step = trainStep({ model, optimizer, nextBatch, accumulation: 1, lr: 1e-3, clip: 1 });
    await expect(step).rejects.toThrow(ArgumentError);
  });

  test("tells of a validation or samples that are none, and trains on", async () => {
    for (const [part, named] of [
      [{ validate: { every: 0, measure: async () => 3 } }, /^no validation after step 4: .*object/],
      [{ validate: { every: 0, measure: async () => ({}) } }, /^no validation .*a number for loss/],
      [{ validate: { every: 0, measure: () => Promise.reject("no text") } }, /step 4: no text; /],
      [{ validate: { every: 0, measure: () => Promise.reject() } }, /step 4: undefined; /],
      [{ sample: { every: 0, write: async () => "text" } }, /^no samples after step 4: .*an array/],
    ] as const) {
      const notices: string[] = [];
      const onNotice = (message: string) => notices.push(message);
      const { result } = await train({ ...(part as Partial<TrainerParts>), onNotice });
      expect(result).toMatchObject({ finished: true, validation: null, samples: [] });
      expect(notices).toEqual([expect.stringMatching(named)]);
    }
  });

  test("prints notices to the console if nothing else hears them", async () => {
    const warn = vi.spyOn(console, "warn").mockReturnValue();
    const measure = () => Promise.reject(new Error("no text"));
    await train({ validate: { every: 0, measure } });
    expect(warn).toHaveBeenCalledExactlyOnceWith(expect.stringContaining("no text"));
    warn.mockRestore();
  });

  test("leaves a signal that outlives it", async () => {
    const { signal } = new AbortController();
    const heard = [vi.spyOn(signal, "addEventListener"), vi.spyOn(signal, "removeEventListener")];
    await train({ signal });
    const [added, removed] = heard.map((spy) => spy.mock.calls.map(([, listener]) => listener));
    expect(added).toHaveLength(1);
    expect(removed).toEqual(added);
  });

  test("refuses figures that its record could not keep", async () => {
    for (const [extra, named] of [
      [Promise.resolve({ a: 1 }), /not a promise/],
      [{ a: 1n }, /a of the result of extraMetrics/],
      [undefined, /numbers by name/],
    ] as const) {
      const wrong = train({ extraMetrics: () => extra as never });
      await expect(wrong).rejects.toThrow(ArgumentError);
      await expect(wrong).rejects.toThrow(named);
    }
  });

  test("is refused by the name of the part, and has no recipe", async () => {
    const parts = await partsOf();
    for (const [wrong, named] of [
      [{ model: 5 }, /language model for model/],
      [{ optimizer: {} }, /optimizer.step/],
      [{ batches: {} }, /batches.next/],
      [{ steps: 0 }, /steps/],
      [{ schedule: 1e-3 }, /schedule/],
      [{ signal: "stop" }, /signal/],
      [{ step: 5 }, /step/],
      [{ validate: { every: 1 } }, /validate.measure/],
      [{ progress: {} }, /progress.step/],
      [{ progress: { step: 1, tokens: 1, position: 1, skips: 3 } }, /progress.skips/],
      [{ guard: {} }, /guard.window/],
      [{ records: {} }, /records.write/],
      [{ cluster: {} }, /Cluster for cluster/],
      [{ canary: {} }, /canary/],
      [{ shardCheck: {} }, /shardCheck/],
      [{ onCheckpoint: () => {} }, /onCheckpoint/],
    ] as const) {
      const make = () => new Trainer({ ...parts, ...wrong } as never);
      expect(make).toThrow(ArgumentError);
      expect(make).toThrow(named);
    }
    parts.model.recompute = "ffn";
    expect(() => Object.assign(parts.model, { recompute: "blocks" })).toThrow(/"block"/);
    const trainer = new Trainer(parts);
    expect(() => trainer.config).toThrow(UsageError);
    trainer.dispose();
  });
});
