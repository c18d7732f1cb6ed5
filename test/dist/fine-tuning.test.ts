/** Adapters and preferences on several processes train as on one, in every strategy. */
import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { saveModel } from "../../lib/checkpoint/model.js";
import { Llama } from "../../lib/model/llama.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { prepare } from "../../lib/prepare/prepare.js";
import type { StepMetrics } from "../../lib/train/metrics.js";
import { buildLibrary, root } from "../cli/build.js";
import { tinyData, tinyModel } from "../support/tiny-run.js";
import { expectCodes, fileOfStep, runToEnd, stepsOf, writeConfig } from "./ranks.js";

let folder: string;
let text: string;
let pairs: string;
let base: string;
beforeAll(async () => {
  buildLibrary();
  ({ folder, data: text } = await tinyData());
  [pairs, base] = [join(folder, "pairs"), join(folder, "base")];
  const records = Array.from({ length: 80 }, (_, n) => ({
    prompt: `Is ${n} good?`,
    chosen: n % 2 ? " Yes, it is." : ` Yes, ${n} is very good, as all such numbers are.`,
    rejected: n % 3 ? " No." : ` No, ${n} is not good at all, never.`,
  }));
  await writeFile(join(folder, "p.jsonl"), records.map((one) => JSON.stringify(one)).join("\n"));
  await prepare({
    inputs: [{ path: join(folder, "p.jsonl"), kind: "preference" }],
    out: pairs,
    tokenizer: join(root, "assets/quickstart"),
    validationFraction: 0.2,
  });
  const shape = { ...tinyModel, layers: 3, contextLength: 64, ropeTheta: 1e4 };
  const model = await Llama.create(
    llamaConfig({ ...shape, rmsNormEps: 1e-5, tieEmbeddings: false }),
    { seed: 4 },
  );
  await saveModel(base, model, { tokenizer: null });
  model.dispose();
});
afterAll(() => rm(folder, { recursive: true }));

/** Relative difference of losses between numbers of processes: f32 sums in another order. */
const bound = 2e-5;

const lora = { rank: 4, alpha: 8, dropout: 0.2 };
const optimizer = { peakLr: 0.05, warmupSteps: 2, weightDecay: 0 };
const recipes = {
  "adapters on text": { lora, optimizer },
  "adapters on text, computed again by blocks": { lora, optimizer, recompute: "block" },
  "adapters on preferences": {
    lora,
    dpo: { beta: 0.5 },
    optimizer: { ...optimizer, peakLr: 0.01 },
  },
  "all weights on preferences": { dpo: { beta: 0.5, loss: "ipo" } },
} as const;

async function train(worldSize: number, changes: Record<string, unknown>, perHost = worldSize) {
  const isPairs = "dpo" in changes;
  const { file, out } = await writeConfig(folder, isPairs ? pairs : text, worldSize, {
    model: undefined,
    init: { from: base },
    data: { train: { [isPairs ? pairs : text]: 1 }, sequenceLength: 64 },
    batch: { microBatch: 4 / worldSize, accumulation: 2 },
    checkpoint: { every: 8 },
    ...changes,
  });
  expectCodes(await runToEnd(file, { worldSize, perHost }), 0);
  return { out, steps: await stepsOf(out) };
}

function expectAlike(found: readonly StepMetrics[], wanted: readonly StepMetrics[]): void {
  expect(found.map(({ step, tokens }) => [step, tokens])).toEqual(
    wanted.map(({ step, tokens }) => [step, tokens]),
  );
  for (const [index, step] of found.entries()) {
    const expected = wanted[index] as StepMetrics;
    const where = `step ${index + 1}`;
    expect(Math.abs(step.loss / expected.loss - 1), where).toBeLessThan(bound);
    expect(Math.abs(step.gradNorm / expected.gradNorm - 1), where).toBeLessThan(20 * bound);
    for (const [name, value] of Object.entries(expected.figures ?? {})) {
      const error = Math.abs((step.figures?.[name] as number) - value);
      expect(error, `${name} of ${where}`).toBeLessThan(50 * bound * (1 + Math.abs(value)));
    }
    if (!expected.validation) continue;
    expect(step.validation?.loss).toBeCloseTo(expected.validation.loss, 4);
    expect(Object.keys(step.validation?.figures ?? {})).toEqual(
      Object.keys(expected.validation.figures ?? {}),
    );
  }
}

describe.each(Object.entries(recipes))("%s", (_, recipe) => {
  let alone: StepMetrics[];
  beforeAll(async () => {
    ({ steps: alone } = await train(1, recipe));
    expect(alone.at(-1)!.loss).toBeLessThan(alone[0]!.loss);
  });

  test.each([
    ["replicated", 2],
    ["zero1", 2],
    ["full_shard", 2],
    ["hybrid_shard", 1],
  ] as const)("trains on two processes as on one (%s)", async (parallel, perHost) => {
    const { out, steps } = await train(2, { ...recipe, parallel }, perHost);
    expectAlike(steps, alone);
    const file = "lora" in recipe ? "adapter_model.safetensors" : "model.safetensors";
    expect((await fileOfStep(out, 8, file)).length).toBeGreaterThan(1000);
  });
});
