import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { loadModel } from "../../lib/checkpoint/model.js";
import type { RunConfig } from "../../lib/config/index.js";
import {
  ArgumentError,
  CheckpointError,
  DivergedError,
  TokenizerError,
  UsageError,
} from "../../lib/core/errors.js";
import { native } from "../../lib/core/native.js";
import { memory, synchronize } from "../../lib/core/runtime.js";
import type { Llama } from "../../lib/model/llama.js";
import { readMetrics, type StepMetrics } from "../../lib/train/metrics.js";
import { SkipHistory } from "../../lib/train/skips.js";
import { Trainer, type TrainerOptions } from "../../lib/train/trainer.js";
import { tinyConfig, tinyData } from "../support/tiny-run.js";

let folder: string;
let data: string;
beforeAll(async () => {
  ({ folder, data } = await tinyData());
});

let runs = 0;
const freshOut = () => join(folder, `run-${runs++}`);

async function run(
  config: RunConfig,
  { stopAfter, ...options }: TrainerOptions & { stopAfter?: number } = {},
) {
  const trainer = await Trainer.create(config, options);
  const steps: StepMetrics[] = [];
  for await (const step of trainer.run()) {
    steps.push(step);
    if (step.step === stopAfter) trainer.stop();
  }
  return { steps, result: trainer.result };
}

const figures = (steps: StepMetrics[]) =>
  steps.map(({ step, loss, gradNorm, lr }) => [step, loss, gradNorm, lr]);
const fileBytes = async (out: string, step: number, name: string) =>
  (await readFile(join(out, `step-${String(step).padStart(10, "0")}`, name))).toString("base64");

describe("a run", () => {
  test("learns, measures, samples, saves, and two runs have equal bits", async () => {
    const options = { sample: { every: 6, prompts: ["The senate"], maxTokens: 8 } };
    const [first, second] = [freshOut(), freshOut()];
    const a = await run(tinyConfig(data, first, options));
    const b = await run(tinyConfig(data, second, options));
    expect(a.steps.map((step) => step.step)).toEqual(Array.from({ length: 12 }, (_, i) => i + 1));
    expect(a.steps[11]?.loss).toBeLessThan((a.steps[0]?.loss as number) - 0.5);
    expect(a.steps[0]?.lr).toBe(0);
    expect(a.result).toMatchObject({ step: 12, tokens: 12 * 4 * 32, finished: true });
    expect(a.result.validation?.bitsPerByte).toBeGreaterThan(0);
    expect(a.steps.filter((step) => step.validation).map((step) => step.step)).toEqual([5, 10, 12]);
    expect(a.steps.filter((step) => step.samples).map((step) => step.step)).toEqual([6, 12]);
    expect(figures(b.steps)).toEqual(figures(a.steps));
    expect(b.result.validation).toEqual(a.result.validation);
    expect(b.result.samples).toEqual(a.result.samples);
    for (const name of ["model.safetensors", "optimizer-state.safetensors"]) {
      expect(await fileBytes(second, 12, name)).toBe(await fileBytes(first, 12, name));
    }
    expect(figures(await readMetrics(join(first, "metrics.jsonl")))).toEqual(figures(a.steps));
    const model = await loadModel(join(first, "step-0000000012"), { dtype: "bf16" });
    expect(model.config.vocabSize).toBe(4096);
    model.dispose();
  });

  test.each(["fp32", "bf16"] as const)(
    "stopped and resumed in %s, it has the bits of the unbroken run",
    async (precision) => {
      const [whole, parts] = [freshOut(), freshOut()];
      const options = { precision, batch: { microBatch: 2, accumulation: 2 }, recompute: "ffn" };
      const unbroken = await run(tinyConfig(data, whole, options));
      const config = tinyConfig(data, parts, options);
      const before = await run(config, { stopAfter: 4 });
      expect(before.result.finished).toBe(false);
      const after = await run(config);
      const stopped = before.steps.at(-1)?.step as number;
      expect(after.steps[0]?.step).toBe(stopped + 1);
      expect(figures([...before.steps, ...after.steps])).toEqual(figures(unbroken.steps));
      expect(figures(await readMetrics(join(parts, "metrics.jsonl")))).toEqual(
        figures(unbroken.steps),
      );
      for (const name of ["model.safetensors", "optimizer-state.safetensors"]) {
        expect(await fileBytes(parts, 12, name)).toBe(await fileBytes(whole, 12, name));
      }
    },
  );

  test("resumed on finished work it ends at once; a longer one goes on", async () => {
    const out = freshOut();
    await run(tinyConfig(data, out, { steps: 3, optimizer: { peakLr: 1e-3, warmupSteps: 1 } }));
    expect(
      (await run(tinyConfig(data, out, { steps: 3, optimizer: { peakLr: 1e-3, warmupSteps: 1 } })))
        .steps,
    ).toEqual([]);
    const more = await run(
      tinyConfig(data, out, { steps: 5, optimizer: { peakLr: 1e-3, warmupSteps: 1 } }),
    );
    expect(more.steps.map((step) => step.step)).toEqual([4, 5]);
  });

  test("starts from the weights of a Hugging Face folder", async () => {
    const out = freshOut();
    await run(tinyConfig(data, out));
    const from = join(out, "step-0000000012");
    const next = await run(
      tinyConfig(data, freshOut(), { init: { from }, optimizer: { peakLr: 1e-9, warmupSteps: 0 } }),
    );
    expect(next.steps[0]?.loss).toBeLessThan(7.6);
  });
});

test("a run that divides itself and stands alone says so", async () => {
  const notices: string[] = [];
  const onNotice = (message: string) => notices.push(message);
  await run(tinyConfig(data, freshOut(), { parallel: "full_shard" }), { onNotice, stopAfter: 1 });
  expect(notices).toContainEqual(
    expect.stringMatching(/^parallel: full_shard divides nothing here/),
  );
});

describe("onCheckpoint", () => {
  test("is awaited, one call after the other, before the run ends", async () => {
    const heard: string[] = [];
    const onCheckpoint = async (_: string, step: number) => {
      heard.push(`begin ${step}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
      heard.push(`end ${step}`);
    };
    const config = tinyConfig(data, freshOut(), { steps: 4, checkpoint: { every: 2 } });
    await run(config, { onCheckpoint });
    expect(heard).toEqual(["begin 2", "end 2", "begin 4", "end 4"]);
  });

  test.each([
    [
      "throws",
      () => {
        throw new RangeError("mine");
      },
      RangeError,
    ],
    [
      "rejects",
      async () => {
        throw new RangeError("mine");
      },
      RangeError,
    ],
    ["rejects with no error", () => Promise.reject("mine"), UsageError],
  ])("that %s ends the run with its error, and the checkpoint is a good one", async (...given) => {
    const [, onCheckpoint, kind] = given;
    const notices: string[] = [];
    const onNotice = (message: string) => notices.push(message);
    const config = tinyConfig(data, freshOut(), { steps: 4, checkpoint: { every: 2 } });
    const failed = run(config, { onCheckpoint, onNotice });
    await expect(failed).rejects.toThrow(kind);
    await expect(failed).rejects.toThrow("mine");
    expect(notices).toEqual([]);
    expect((await run(config)).result.finished).toBe(true);
  });
});

describe("refused before anything is trained", () => {
  test("a signal that is none, without leaving the folder locked", async () => {
    const config = tinyConfig(data, freshOut(), { steps: 3 });
    await expect(Trainer.create(config, { signal: {} as never })).rejects.toThrow(ArgumentError);
    await run(config);
  });

  test("a second run in the folder, an old run's folder, another run's checkpoint", async () => {
    const out = freshOut();
    const first = await Trainer.create(tinyConfig(data, out));
    await expect(Trainer.create(tinyConfig(data, out))).rejects.toThrow(UsageError);
    for await (const _ of first.run());
    await expect(Trainer.create(tinyConfig(data, out), { resume: "none" })).rejects.toThrow(
      /holds \d checkpoints/,
    );
    const other = tinyConfig(data, out, { seed: 6 });
    await expect(Trainer.create(other)).rejects.toThrow(/seed: the checkpoint has 5, this run 6/);
    await expect(Trainer.create(tinyConfig(data, out, { precision: "fp32" }))).rejects.toThrow(
      CheckpointError,
    );
    // A refused run releases the folder.
    for await (const _ of (await Trainer.create(tinyConfig(data, out))).run());
  });

  test("a model too small for the tokenizer", async () => {
    const config = tinyConfig(data, freshOut());
    await expect(
      Trainer.create({ ...config, model: { ...config.model, vocabSize: 100 } }),
    ).rejects.toThrow(TokenizerError);
  });
});

describe("too many skipped steps (docs/faults.md N4)", () => {
  /**
   * Runs to the end with a weight so large that every loss is NaN. No clipping can save this run.
   */
  async function diverge(out: string, options: object = {}) {
    const limits = { guard: { maxConsecutiveSkips: 2 }, steps: 12 };
    const config = tinyConfig(data, out, { ...limits, ...options });
    const notices: string[] = [];
    const trainer = await Trainer.create(config, { onNotice: (text) => notices.push(text) });
    // The weights are finite, so the state may be saved. Their squares and products are not.
    native.fill((trainer.model as Llama).norm.weight.tensor.native, 3e38);
    const seen: StepMetrics[] = [];
    await expect(
      (async () => {
        for await (const step of trainer.run()) seen.push(step);
      })(),
    ).rejects.toThrow(DivergedError);
    return { seen, notices };
  }

  test("end the run with the state saved and a hint", async () => {
    const out = freshOut();
    const { seen } = await diverge(out);
    // The third skip decides. The step that was already enqueued finishes, and all steps are
    // reported.
    expect(seen.map((step) => step.skipped)).toEqual(Array(4).fill("loss not finite"));
    await readFile(join(out, "step-0000000004/manifest.json"));
  });

  /**
   * The lowest limit of skips that ends this run at a skipped step followed by one that is not
   * skipped.
   */
  function decisiveSkips(steps: readonly StepMetrics[], window: number): number {
    let most = 0;
    for (const [i, { skipped }] of steps.entries()) {
      const skips = steps.slice(Math.max(0, i + 1 - window), i + 1).filter((step) => step.skipped);
      const next = steps[i + 1];
      if (skipped && next && !next.skipped && skips.length > Math.max(1, most)) return skips.length;
      most = Math.max(most, skips.length);
    }
    throw new Error("no step of this run would do: choose another zGradNorm");
  }

  test("leave a checkpoint from which the run goes on as if it had never ended", async () => {
    // The limit for spikes is so low that some steps are spikes and the steps after them are not.
    const guard = { window: 10, minimumHistory: 2, zLoss: 100, zGradNorm: 0.1 };
    const run = async (limits: { maxSkipsPerWindow: number; maxConsecutiveSkips: number }) => {
      const config = tinyConfig(data, freshOut(), { guard: { ...guard, ...limits }, steps: 24 });
      const trainer = await Trainer.create(config);
      const steps: StepMetrics[] = [];
      const ended = await (async () => {
        for await (const step of trainer.run()) steps.push(step);
      })().catch((error: unknown) => error);
      return { config, steps, ended };
    };
    const never = { maxSkipsPerWindow: 9, maxConsecutiveSkips: 9 };
    const whole = await run(never);
    const limit = decisiveSkips(whole.steps, guard.window) - 1;
    const early = await run({ maxSkipsPerWindow: limit, maxConsecutiveSkips: 9 });
    expect(early.ended).toBeInstanceOf(DivergedError);
    // The step that was enqueued before the decision has changed the weights.
    expect(early.steps.at(-2)?.skipped).toBeDefined();
    expect(early.steps.at(-1)?.skipped).toBeUndefined();
    const config = { ...early.config, guard: whole.config.guard };
    const resumed = await Trainer.create(config);
    const steps = [...early.steps];
    for await (const step of resumed.run()) steps.push(step);
    const figures = steps.map(({ step, loss, gradNorm, skipped }) => [
      step,
      loss,
      gradNorm,
      skipped,
    ]);
    expect(figures).toEqual(
      whole.steps.map(({ step, loss, gradNorm, skipped }) => [step, loss, gradNorm, skipped]),
    );
  });

  test("no samples and no validation loss of such weights keep it from saving", async () => {
    const out = freshOut();
    const measuring = { evaluate: { every: 1 }, sample: { every: 1, prompts: ["the"] } };
    const { seen, notices } = await diverge(out, measuring);
    // The reason is the same each time and is reported once.
    const told = notices.filter((text) => text.startsWith("no samples after step"));
    expect(told).toEqual([
      expect.stringMatching(/step 1: .*all weights are finite, but too large/),
    ]);
    expect(seen.at(-1)?.validation?.loss).toBeNaN();
    await readFile(join(out, "step-0000000003/manifest.json"));
  });

  test("are counted in a row and per window", () => {
    const limits = { maxConsecutiveSkips: 2, maxSkipsPerWindow: 3, window: 6 };
    const history = new SkipHistory(limits);
    for (const skipped of [true, true, false, true]) history.add(skipped);
    expect(history.verdict(4)).toBe(null);
    history.add(true);
    expect(history.verdict(5)?.message).toMatch(/4 of the last 5/);
    for (let i = 0; i < 6; i++) history.add(false);
    expect(history.verdict(11)).toBe(null);
    for (let i = 0; i < 3; i++) history.add(true);
    expect(history.verdict(14)?.message).toMatch(/3 steps in a row/);
    expect(new SkipHistory(limits, history.recent).verdict(14)).not.toBe(null);
  });
});

test("runs leave no tensors and no bytes behind", async () => {
  const count = async () => {
    await synchronize();
    return memory().tensors;
  };
  const config = tinyConfig(data, freshOut(), { steps: 4 });
  const trainer = await Trainer.create(config);
  const before = await count();
  for await (const _ of trainer.run());
  // The tensors of optimizer and model exist before the first step, which makes the rotary table.
  expect((await count()) - before).toBeLessThanOrEqual(1 + trainer.model.parameters().length);
});
