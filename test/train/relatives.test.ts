/** Runs of Llama's relatives: learning, resuming, and going on from a Hugging Face folder. */
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { loadModel } from "../../lib/checkpoint/model.js";
import { resolveConfig } from "../../lib/config/index.js";
import { CheckpointError, ConfigError } from "../../lib/core/errors.js";
import { Trainer } from "../../lib/train/trainer.js";
import { tinyConfig, tinyData, tinyModel } from "../support/tiny-run.js";

let data: string;
let folder: string;
beforeAll(async () => {
  ({ data, folder } = await tinyData());
});

const relatives = {
  qwen3: {
    ...tinyModel,
    family: "qwen3",
    headSize: 24,
    attentionBias: true,
    ropeScaling: { type: "yarn", factor: 4, originalContextLength: 8 },
  },
  smollm3: {
    ...tinyModel,
    family: "smollm3",
    positionlessLayers: [1],
    slidingWindow: 8,
    windowLayers: [0],
    feedForwardBias: true,
  },
};

/** Losses of a run's steps, up to one after which it is stopped. */
async function losses(out: string, overrides: object, stopAfter?: number): Promise<number[]> {
  const config = tinyConfig(data, join(folder, out), { checkpoint: { every: 4 }, ...overrides });
  const trainer = await Trainer.create(config, { onNotice: () => {} });
  const seen: number[] = [];
  for await (const { step, loss } of trainer.run()) {
    seen.push(loss);
    if (step === stopAfter) trainer.stop();
  }
  return seen;
}

const last = (out: string) => join(folder, out, "step-0000000012");

describe.each(Object.entries(relatives))("%s", (name, model) => {
  test("learns, and has the bits of the unbroken run when it was stopped", async () => {
    const options = { model, recompute: "block", sample: { every: 6, prompts: ["The senate"] } };
    const whole = await losses(`${name}-whole`, options);
    expect(whole[11]).toBeLessThan((whole[0] as number) - 0.3);
    const before = await losses(`${name}-parts`, options, 4);
    expect([...before, ...(await losses(`${name}-parts`, options))]).toEqual(whole);
    const saved = await loadModel(last(`${name}-whole`));
    expect(saved.config).toMatchObject(model);
    saved.dispose();
  });

  test("goes on from its folder, whose shape is the run's", async () => {
    const options = { model: {}, init: { from: last(`${name}-whole`) }, steps: 4 };
    const further = await losses(`${name}-further`, options);
    expect(further[0]).toBeLessThan(7);
    const { windowLayers: _, ...other } = { windowLayers: null, ...model, attentionBias: false };
    const config = () =>
      resolveConfig({
        steps: 4,
        data: { train: { [data]: 1 } },
        init: { from: last(`${name}-whole`) },
        model: { ...other, layers: 1, positionlessLayers: [] },
      } as never);
    expect(config).toThrow(ConfigError);
    expect(config).toThrow(/model\.layers: 1 differs from 2 in .*init\.from/);
    expect(config).toThrow(
      name === "qwen3"
        ? /model\.attentionBias: none differs from true/
        : /model\.positionlessLayers: none differs from \[1\]/,
    );
  });
});

test("a checkpoint of another variation is refused by its fields", async () => {
  const { family, ...plain } = relatives.smollm3;
  await losses("one", { model: { ...plain, family }, steps: 4 });
  const { positionlessLayers: _, ...other } = plain;
  const again = losses("one", { model: { ...other, family, slidingWindow: 4 }, steps: 4 });
  await expect(again).rejects.toThrow(CheckpointError);
  await expect(again).rejects.toThrow(/slidingWindow 8, not 4/);
  await expect(again).rejects.toThrow(/positionlessLayers \[1\], not none/);
});
