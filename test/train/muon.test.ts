// Recipes with Muon: resuming, refusals, and what a checkpoint holds.
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { openNewest } from "../../lib/checkpoint/load.js";
import { type RunConfig, resolveConfig } from "../../lib/config/index.js";
import { planRun } from "../../lib/plan/plan.js";
import { formatPlan } from "../../lib/plan/text.js";
import { readMetrics, type StepMetrics } from "../../lib/train/metrics.js";
import { Trainer, type TrainerOptions } from "../../lib/train/trainer.js";
import { tinyConfig, tinyData, tinyModel } from "../support/tiny-run.js";

let folder: string;
let data: string;
beforeAll(async () => {
  ({ folder, data } = await tinyData());
});

let runs = 0;
const freshOut = () => join(folder, `muon-run-${runs++}`);
const muon = { type: "muon", peakLr: 5e-3, warmupSteps: 2 };

async function run(
  config: RunConfig,
  { stopAfter, ...options }: TrainerOptions & { stopAfter?: number } = {},
) {
  const trainer = await Trainer.create(config, { onNotice: () => {}, ...options });
  const steps: StepMetrics[] = [];
  for await (const step of trainer.run()) {
    steps.push(step);
    if (step.step === stopAfter) trainer.stop();
  }
  trainer.dispose();
  return steps;
}

const figures = (steps: StepMetrics[]) =>
  steps.map(({ step, loss, gradNorm, lr }) => [step, loss, gradNorm, lr]);

async function stateOf(out: string): Promise<Map<string, string>> {
  const checkpoint = await openNewest(out);
  const bytes = new Map<string, string>();
  for (const file of ["model.safetensors", "optimizer-state.safetensors"]) {
    for (const [name, tensor] of checkpoint?.tensors.get(file)?.tensors ?? []) {
      bytes.set(`${file} ${name}`, Buffer.from(await tensor.readBytes()).toString("base64"));
    }
  }
  return bytes;
}

test.each(["fp32", "bf16", "fp8"] as const)(
  "in %s it learns, and a resumed run has the bits of the unbroken one",
  async (precision) => {
    const [whole, parts] = [freshOut(), freshOut()];
    const options = { precision, optimizer: muon, guard: { zGradNorm: 100 } };
    const unbroken = await run(tinyConfig(data, whole, options));
    const [first, last] = [unbroken[0], unbroken.at(-1)] as [StepMetrics, StepMetrics];
    expect(last.loss).toBeLessThan(first.loss - 0.5);
    const before = await run(tinyConfig(data, parts, options), { stopAfter: 4 });
    const after = await run(tinyConfig(data, parts, options));
    expect(after[0]?.step).toBe((before.at(-1)?.step as number) + 1);
    expect(figures([...before, ...after])).toEqual(figures(unbroken));
    expect(figures(await readMetrics(join(parts, "metrics.jsonl")))).toEqual(figures(unbroken));
    const state = await stateOf(whole);
    expect(await stateOf(parts)).toEqual(state);
    const second = [...state.keys()].filter((name) => name.endsWith(".v"));
    expect(second.map((name) => name.replace(/.* /, "")).sort()).toEqual(
      [
        "blocks.0.attentionNorm.weight.v",
        "blocks.0.feedForwardNorm.weight.v",
        "blocks.1.attentionNorm.weight.v",
        "blocks.1.feedForwardNorm.weight.v",
        "embedding.weight.v",
        "head.weight.v",
        "norm.weight.v",
      ].sort(),
    );
  },
);

test("goes on with no other optimizer's state", async () => {
  const out = freshOut();
  await run(tinyConfig(data, out, { optimizer: muon }), { stopAfter: 2 });
  const other = Trainer.create(tinyConfig(data, out), { onNotice: () => {} });
  await expect(other).rejects.toThrow(
    /optimizer.type: the checkpoint has "muon", this run "adamw": the checkpoint holds that optimizer's state/,
  );
});

test("is refused beside adapters", () => {
  const input = {
    steps: 1,
    model: tinyModel,
    data: { train: { data: 1 } },
    optimizer: { type: "muon" },
    lora: {},
  };
  expect(() => resolveConfig(input as never)).toThrow(/optimizer.type: expected adamw beside lora/);
});

test("is planned: no second moments for matrices, and the products of its iteration", () => {
  const of = (optimizer: object) =>
    resolveConfig({
      steps: 100,
      device: "cuda",
      model: { preset: "tinyllama-1.1b" },
      data: { train: { data: 1 } },
      batch: { microBatch: 16, accumulation: 4 },
      optimizer,
    } as never);
  const [adamw, planned] = [planRun(of({})), planRun(of({ type: "muon" }))];
  expect(adamw.optimizerFlops).toBe(0);
  // Per layer: q and o of 2048², k and v of 256 x 2048, gate, up and down of 5632 x 2048.
  const product = (a: number, b: number) => 5 * (4 * a * a * b + 2 * a ** 3);
  const layer = 2 * product(2048, 2048) + 2 * product(256, 2048) + 3 * product(2048, 5632);
  expect(planned.optimizerFlops).toBe(22 * layer);
  const matrices = 22 * (2 * 2048 * 2048 + 2 * 256 * 2048 + 3 * 2048 * 5632);
  expect(adamw.memory.moments - planned.memory.moments).toBe(4 * matrices);
  expect(formatPlan(of({ type: "muon" }), planned)).toMatch(
    /Muon's FLOPs per step +\d+\.\d+ TFLOP/,
  );
  const gpus = { gpu: "h100", gpus: 8, tokensPerSecond: 80_000 };
  const [plain, whole] = [planRun(of({}), gpus), planRun(of({ type: "muon" }), gpus)];
  const sent = (plan: typeof plain, name: string) =>
    plan.scaling?.strategies.find(({ parallel }) => parallel === name)?.sentBytes as number;
  expect(sent(whole, "replicated")).toBe(sent(plain, "replicated"));
  // Each block's directions travel in bf16: seven eighths of them from each of 8 ranks.
  for (const parallel of ["zero1", "full_shard"]) {
    const more = sent(whole, parallel) - sent(plain, parallel);
    expect(more / ((2 * matrices * 7) / 8)).toBeCloseTo(1, 2);
  }
});
