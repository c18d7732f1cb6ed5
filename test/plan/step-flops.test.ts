/** The FLOPs that `plan` counts, beside those of the operations that a step enqueues. */
import { expect, test } from "vitest";
import { Llama } from "../../lib/model/llama.js";
import { type LlamaConfig, llamaConfig } from "../../lib/model/llama-config.js";
import { LoraModel } from "../../lib/model/lora.js";
import { type LoraTarget, loraTargets } from "../../lib/model/lora-config.js";
import { presets } from "../../lib/model/presets.js";
import { AdamW } from "../../lib/optim/adamw.js";
import {
  flopsPerToken,
  recomputedFlops,
  type StepShape,
  stepFlops,
  trainingFlops,
} from "../../lib/plan/flops.js";
import { nextTokens } from "../../lib/train/objective.js";
import { PreferenceObjective } from "../../lib/train/preference-objective.js";
import { trainStep } from "../../lib/train/step.js";
import { countProducts } from "../support/counted-products.js";

const shape = llamaConfig({
  ...{ vocabSize: 96, hiddenSize: 32, intermediateSize: 48, layers: 3, heads: 4, kvHeads: 2 },
  ...{ contextLength: 32, ropeTheta: 1e4, rmsNormEps: 1e-5, tieEmbeddings: false },
});
const tied = { ...shape, tieEmbeddings: true };
const windowed: LlamaConfig = {
  ...{ ...shape, family: "mistral", slidingWindow: 16 },
};
const time = 32;
const rows = 2;
const dpo = { loss: "sigmoid", beta: 0.1, labelSmoothing: 0 } as const;

interface Kind {
  model?: LlamaConfig;
  targets?: readonly LoraTarget[];
  dropout?: number;
  prefers?: boolean;
  recompute?: "none" | "ffn" | "block";
  fp8?: boolean;
}

const lora = (targets: readonly LoraTarget[], dropout = 0) => ({
  ...{ rank: 4, alpha: 8, targets: [...targets], dropout },
});

/** The products of a step, per token. */
async function counted(kind: Kind): Promise<{ linear: number; attention: number }> {
  const { model: config = shape, targets, prefers = false, recompute = "none", fp8 = false } = kind;
  const dtype = fp8 ? "bf16" : "f32";
  const base = await Llama.create(config, { seed: 1, dtype, training: !targets });
  const model = targets ? LoraModel.create(base, lora(targets, kind.dropout)) : base;
  model.recompute = recompute;
  model.fp8 = fp8;
  const reference =
    prefers && !targets ? await Llama.create(config, { seed: 1, dtype, training: false }) : null;
  const objective = prefers ? new PreferenceObjective(dpo, reference) : nextTokens;
  const optimizer = new AdamW(model.store);
  const ids = Int32Array.from({ length: rows * time }, (_, i) => (i * 37) % 96);
  const halfOf = (i: number) => Math.floor((i % time) / (time / 2));
  const perToken = (value: (i: number) => number) =>
    Int32Array.from({ length: ids.length }, (_, i) => value(i));
  const pairs = prefers && {
    pairs: rows,
    answers: perToken((i) => 2 * Math.floor(i / time) + halfOf(i)),
    firstKey: perToken((i) => (halfOf(i) * time) / 2),
    positions: perToken((i) => i % (time / 2)),
  };
  const batch = { inputs: ids, targets: ids, count: rows, firstRow: 0, ...pairs };
  const { linear, attention } = await countProducts(async () => {
    const step = await trainStep({
      ...{ model, optimizer, objective, nextBatch: async () => batch },
      ...{ accumulation: 1, lr: 1e-4, clip: 1 },
    });
    await step.figures;
  });
  optimizer.dispose();
  objective.dispose?.();
  model.dispose();
  return { linear: linear / (rows * time), attention: attention / (rows * time) };
}

test.each<[string, Kind]>([
  ["a whole model", {}],
  ["a whole model with tied embeddings", { model: tied }],
  ["a whole model with a sliding window", { model: windowed }],
  ["a whole model, ffn again", { recompute: "ffn" }],
  ["a whole model, blocks again", { recompute: "block" }],
  ["a whole model in fp8", { fp8: true }],
  ["adapters on all matrices", { targets: loraTargets }],
  ["adapters on a tied model", { targets: loraTargets, model: tied }],
  ["adapters with dropout", { targets: loraTargets, dropout: 0.1 }],
  ["adapters on q and v", { targets: ["q_proj", "v_proj"] }],
  ["adapters on the output", { targets: ["o_proj"] }],
  ["adapters on gate", { targets: ["gate_proj"] }],
  ["adapters on down", { targets: ["down_proj"] }],
  ["adapters, ffn again", { targets: loraTargets, recompute: "ffn" }],
  ["adapters on up, blocks again", { targets: ["up_proj"], recompute: "block" }],
  ["preferences", { prefers: true }],
  ["preferences on a tied model, blocks again", { prefers: true, model: tied, recompute: "block" }],
  ["preferences with adapters", { prefers: true, targets: ["k_proj", "down_proj"] }],
])("%s: as many as a step enqueues", async (_, kind) => {
  const { model = shape, targets, dropout, prefers, recompute = "none" } = kind;
  const recipe: StepShape = {
    ...{ model, recompute, data: { sequenceLength: time } },
    ...(targets && { lora: lora(targets, dropout) }),
    ...(prefers && { dpo }),
  };
  const { reference, blocks, head } = stepFlops(recipe);
  const parts = [reference, ...blocks.flatMap((block) => Object.values(block))];
  const planned = {
    linear: head.forward + head.backward + head.again + parts.reduce((a, b) => a + b.linear, 0),
    attention: parts.reduce((a, b) => a + b.attention, 0),
  };
  const found = await counted(kind);
  expect(found.linear).toBeCloseTo(planned.linear, 6);
  // The count takes half of a window's last token for all of it.
  const tolerance = model === windowed ? 0.03 : 1e-9;
  expect(Math.abs(found.attention / planned.attention - 1)).toBeLessThan(tolerance);
  const needed = trainingFlops(recipe).causal + recomputedFlops(recipe);
  expect(planned.linear + planned.attention).toBeCloseTo(needed, 6);
});

test("a model that is trained whole on the next tokens has the FLOPs of its shape", () => {
  for (const [name, model] of Object.entries(presets)) {
    const data = { sequenceLength: Math.min(2048, model.contextLength) };
    const { reference, ...flops } = trainingFlops({ model, data, recompute: "none" });
    const plain = flopsPerToken(model, data.sequenceLength);
    expect(reference).toBe(0);
    for (const [key, value] of Object.entries(plain)) {
      expect(flops[key as keyof typeof flops] / value, `${name} ${key}`).toBeCloseTo(1, 12);
    }
  }
});
