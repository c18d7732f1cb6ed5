import { expect, it } from "vitest";
import { resolveConfig } from "../../lib/config/index.js";
import { decidePrecision } from "../../lib/config/precision.js";
import { memory, resetPeakMemory } from "../../lib/core/runtime.js";
import { Llama } from "../../lib/model/llama.js";
import { LoraModel } from "../../lib/model/lora.js";
import { type LoraTarget, loraTargets } from "../../lib/model/lora-config.js";
import { AdamW } from "../../lib/optim/adamw.js";
import { planMemory, withTotal } from "../../lib/plan/memory.js";
import { nextTokens } from "../../lib/train/objective.js";
import { PreferenceObjective } from "../../lib/train/preference-objective.js";
import { trainStep } from "../../lib/train/step.js";

/** What is trained, and how. */
interface Kind {
  lora?: { rank: number; alpha: number; targets: readonly LoraTarget[]; dropout: number };
  dpo?: { loss: "sigmoid"; beta: number; labelSmoothing: number };
  accumulation?: number;
}

/** A step's peak in bytes, as measured and as planned. */
async function stepPeak(
  layers: number,
  recompute: "none" | "ffn" | "block",
  precision: "bf16" | "fp32" | "fp8",
  microBatch = 4,
  { lora, dpo, accumulation = 1 }: Kind = {},
): Promise<{ peak: number; planned: number }> {
  const config = {
    ...resolveConfig({
      steps: 2,
      model: { preset: "quickstart", layers },
      batch: { microBatch, accumulation },
      data: { train: { none: 1 } },
      precision,
      recompute,
    }),
    // A recipe needs the folder of a model beside it.
    ...(lora && { lora: { ...lora, targets: [...lora.targets] } }),
    ...(dpo && { dpo }),
  };
  const dtype = precision === "fp32" ? "f32" : "bf16";
  const before = memory().bytes;
  const base = await Llama.create(config.model, { dtype, seed: 1, training: !lora });
  const model = lora ? LoraModel.create(base, lora) : base;
  model.recompute = recompute;
  model.fp8 = precision === "fp8";
  const reference =
    dpo && !lora ? await Llama.create(config.model, { dtype, seed: 1, training: false }) : null;
  const objective = dpo ? new PreferenceObjective(dpo, reference) : nextTokens;
  const { beta1, beta2, eps, weightDecay, decay } = config.optimizer;
  const optimizer = new AdamW(model.store, { beta1, beta2, eps, weightDecay, decay });
  const ids = Int32Array.from({ length: microBatch * 256 }, (_, i) => (i * 7919) % 4096);
  const half = (_: unknown, i: number) => Math.floor(i / 128);
  const pairs = dpo && {
    pairs: microBatch,
    answers: Int32Array.from({ length: ids.length }, half),
  };
  resetPeakMemory();
  const step = await trainStep({
    model,
    optimizer,
    objective,
    nextBatch: async () => ({
      inputs: ids,
      targets: ids,
      count: microBatch,
      firstRow: 0,
      ...pairs,
    }),
    accumulation,
    lr: 1e-4,
    clip: 1,
  });
  await step.figures;
  const peak = memory().peakBytes - before;
  optimizer.dispose();
  objective.dispose?.();
  model.dispose();
  const planned = withTotal(planMemory(decidePrecision(config, null)));
  return { peak, planned: planned.total };
}

const cases = [
  ["none", "bf16"],
  ["none", "fp32"],
  ["ffn", "bf16"],
  ["block", "bf16"],
] as const;

// The plan must match the real memory of a step.
it.each(cases)(
  "a step's peak is near its plan (recompute %s, %s)",
  async (recompute, precision) => {
    const { peak, planned } = await stepPeak(3, recompute, precision);
    expect(peak / planned).toBeGreaterThan(0.85);
    expect(peak / planned).toBeLessThan(1.15);
  },
);

const adapters = { rank: 8, alpha: 16, targets: [...loraTargets], dropout: 0 };
const dpo = { loss: "sigmoid", beta: 0.1, labelSmoothing: 0 } as const;

it.each([
  ["adapters", "bf16", { lora: adapters }],
  ["adapters", "fp32", { lora: adapters }],
  ["adapters", "fp8", { lora: adapters }],
  ["adapters on q and v", "bf16", { lora: { ...adapters, targets: ["q_proj", "v_proj"] } }],
  ["adapters on q and v", "fp8", { lora: { ...adapters, targets: ["q_proj", "v_proj"] } }],
  ["adapters on preferences", "fp8", { dpo, lora: adapters }],
  ["adapters with dropout", "bf16", { lora: { ...adapters, dropout: 0.1 } }],
  ["adapters with dropout", "fp32", { lora: { ...adapters, dropout: 0.1 } }],
  ["preferences", "bf16", { dpo }],
  ["preferences", "fp32", { dpo }],
  ["preferences over micro-batches", "bf16", { dpo, accumulation: 2 }],
  ["adapters on preferences", "bf16", { dpo, lora: adapters }],
] as const)("so is that of %s (%s)", async (_, type, kind) => {
  const { peak, planned } = await stepPeak(3, "none", type, 4, kind);
  expect(peak / planned).toBeGreaterThan(0.85);
  expect(peak / planned).toBeLessThan(1.15);
});

// The CPU's allocator rounds sizes up, hence the tolerance of 3%. One more tensor of the model's
// width would be 5%.
it.each(["bf16", "fp32"] as const)("a layer keeps what is planned, no more (%s)", async (type) => {
  const [few, many] = [await stepPeak(4, "none", type, 8), await stepPeak(10, "none", type, 8)];
  const ratio = (many.peak - few.peak) / (many.planned - few.planned);
  expect(ratio).toBeGreaterThan(0.97);
  expect(ratio).toBeLessThan(1.03);
});
