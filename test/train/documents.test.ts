/** Recipes that keep the documents of a window apart, end to end. */
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { CheckpointError } from "../../lib/core/errors.js";
import { Trainer } from "../../lib/train/trainer.js";
import { tinyConfig, tinyData } from "../support/tiny-run.js";

let folder: string;
let data: string;
beforeAll(async () => {
  ({ folder, data } = await tinyData());
});

let runs = 0;
const freshOut = () => join(folder, `run-${runs++}`);

/** Losses and validation loss of a run with these options of `data`. */
async function train(options: object, out = freshOut(), more: object = {}, stopAfter = 0) {
  const config = tinyConfig(data, out, {
    data: { train: { [data]: 1 }, sequenceLength: 256, ...options },
    model: {
      vocabSize: 4096,
      hiddenSize: 32,
      intermediateSize: 48,
      layers: 2,
      heads: 2,
      kvHeads: 1,
      contextLength: 256,
    },
    batch: { microBatch: 2 },
    steps: 8,
    checkpoint: { every: 4 },
    evaluate: { every: 8, batches: 2 },
    ...more,
  });
  const trainer = await Trainer.create(config);
  const losses: number[] = [];
  for await (const step of trainer.run()) {
    losses.push(step.loss);
    if (step.step === stopAfter) trainer.stop();
  }
  const { validation } = trainer.result;
  trainer.dispose();
  return { losses, validation: validation?.loss };
}

describe("a run whose recipe keeps documents apart", () => {
  test("learns, trains and validates on other sums than without, and both options count", async () => {
    const plain = await train({});
    const explicit = await train({ maskDocuments: false, resetPositions: false });
    expect(explicit).toEqual(plain);
    const masked = await train({ maskDocuments: true });
    const reset = await train({ resetPositions: true });
    const both = await train({ maskDocuments: true, resetPositions: true });
    for (const { losses } of [plain, masked, reset, both]) {
      expect(losses.at(-1)).toBeLessThan((losses[0] as number) - 0.3);
    }
    // The first step has a learning rate of 0, so the models are equal. The losses differ only by
    // the mask.
    const first = [plain, masked, reset, both].map(({ losses }) => losses[0]);
    expect(new Set(first).size).toBe(4);
    const validations = [plain, masked, reset, both].map(({ validation }) => validation);
    expect(new Set(validations).size).toBe(4);
  });

  test("has the same bits recomputed, and after a stop and a resume", async () => {
    const options = { maskDocuments: true, resetPositions: true };
    const whole = await train(options);
    expect(await train(options, freshOut(), { recompute: "block" })).toEqual(whole);
    const out = freshOut();
    const before = await train(options, out, {}, 3);
    const after = await train(options, out);
    expect([...before.losses, ...after.losses]).toEqual(whole.losses);
    expect(after.validation).toBe(whole.validation);
    // A changed option would silently make a different run.
    await expect(train({}, out)).rejects.toThrow(CheckpointError);
    await expect(train({ maskDocuments: true }, out)).rejects.toThrow(/documents/);
  });
});
