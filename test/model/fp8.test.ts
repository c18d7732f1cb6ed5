import { describe, expect, it } from "vitest";
import { resolveConfig } from "../../lib/config/index.js";
import { noGrad } from "../../lib/core/autograd.js";
import { ArgumentError, ConfigError } from "../../lib/core/errors.js";
import { scope } from "../../lib/core/scope.js";
import { batchTensors } from "../../lib/model/batch.js";
import type { Recompute } from "../../lib/model/language-model.js";
import { Llama } from "../../lib/model/llama.js";
import { type LlamaFields, llamaConfig } from "../../lib/model/llama-config.js";
import { AdamW } from "../../lib/optim/adamw.js";
import { randomIntegers } from "../support/reference.js";

const shape = {
  ...{ vocabSize: 96, hiddenSize: 64, intermediateSize: 112, layers: 3, heads: 4, kvHeads: 2 },
  ...{ contextLength: 32, ropeTheta: 10_000, rmsNormEps: 1e-5, tieEmbeddings: false },
} satisfies LlamaFields;

const host = (seed: number) => {
  const ids = Int32Array.from(randomIntegers([3 * 33], seed, 0, 96).data);
  const rows = [0, 1, 2].map((row) => ids.subarray(33 * row, 33 * row + 33));
  const join = (parts: Int32Array[]) => Int32Array.from(parts.flatMap((part) => [...part]));
  return {
    inputs: join(rows.map((row) => row.subarray(0, 32))),
    targets: join(rows.map((row) => row.subarray(1))),
    count: 3,
    length: 32,
  };
};

const create = (fields: LlamaFields, dtype: "f32" | "bf16" = "bf16") =>
  Llama.create(llamaConfig(fields), { dtype, seed: 5 });

/** Losses and gradient norms of some steps on one batch. */
async function train(
  fields: LlamaFields,
  options: { fp8: boolean; recompute?: Recompute; steps?: number },
): Promise<number[]> {
  const model = await create(fields);
  model.fp8 = options.fp8;
  model.recompute = options.recompute ?? "none";
  const optimizer = new AdamW(model.store);
  const results: number[] = [];
  for (let step = 0; step < (options.steps ?? 6); step++) {
    await scope(async () => {
      const loss = model.loss(batchTensors(host(9), model.device));
      loss.backward();
      const { gradNorm } = optimizer.step({ lr: 3e-3, clip: 1, loss });
      results.push(await loss.item(), await gradNorm.item());
    });
  }
  optimizer.dispose();
  model.dispose();
  return results;
}

describe.each([
  ["a Llama", shape],
  ["a model with biases", { ...shape, attentionBias: true, feedForwardBias: true }],
  ["a model with normed heads", { ...shape, family: "qwen3" }],
] as [string, LlamaFields][])("%s in fp8", (_, fields) => {
  it("learns as in bf16", async () => {
    const [fp8, bf16] = [await train(fields, { fp8: true }), await train(fields, { fp8: false })];
    const [loss, norm, lastLoss] = [fp8[0], fp8[1], fp8.at(-2)] as [number, number, number];
    const [loss16, norm16, lastLoss16] = [bf16[0], bf16[1], bf16.at(-2)] as number[];
    expect(loss).not.toBe(loss16);
    // Of equal weights. Later steps have weights of their own, so only how far they have learned is
    // compared.
    expect(Math.abs(loss / (loss16 as number) - 1)).toBeLessThan(0.003);
    expect(Math.abs(norm / (norm16 as number) - 1)).toBeLessThan(0.03);
    const learned = (loss - lastLoss) / ((loss16 as number) - (lastLoss16 as number));
    expect(loss - lastLoss).toBeGreaterThan(0.2);
    expect(Math.abs(learned - 1)).toBeLessThan(0.1);
  });

  it("gives the same bits again, also when backward computes activations again", async () => {
    const first = await train(fields, { fp8: true, steps: 3 });
    for (const recompute of ["none", "ffn", "block"] as const) {
      expect(await train(fields, { fp8: true, recompute, steps: 3 })).toEqual(first);
    }
  });
});

it("computes with a cache as in bf16, and without gradients as it trains", async () => {
  const model = await create(shape);
  const batch = batchTensors(host(2), model.device);
  const cached = () =>
    noGrad(() => model.forward(batch.inputs, model.createCache(3, 32))).toArray();
  const plain = await cached();
  const plainLosses = await model.tokenLosses(batch).toArray();
  model.fp8 = true;
  expect(await cached()).toEqual(plain);
  const losses = await model.tokenLosses(batch).toArray();
  expect(losses).not.toEqual(plainLosses);
  const mean = [...losses].reduce((sum, loss) => sum + loss, 0) / losses.length;
  expect(mean).toBeCloseTo(await model.loss(batch).item(), 4);
  model.fp8 = false;
  expect(await model.tokenLosses(batch).toArray()).toEqual(plainLosses);
  model.dispose();
});

it("refuses f32 weights and widths that are not multiples of 16", async () => {
  const f32 = await create(shape, "f32");
  expect(() => {
    f32.fp8 = true;
  }).toThrow(ArgumentError);
  const uneven = await create({ ...shape, intermediateSize: 100 });
  expect(() => {
    uneven.fp8 = true;
  }).toThrow(ConfigError);
  expect(() => {
    uneven.fp8 = 1 as never;
  }).toThrow(ArgumentError);
  f32.dispose();
  uneven.dispose();
});

it("names the width in a recipe that fp8 cannot train", () => {
  const recipe = { precision: "fp8", steps: 1, data: { train: { data: 1 } } } as const;
  const model = { ...shape, intermediateSize: 100 };
  const load = (more: object) => resolveConfig({ ...recipe, model, ...more } as never);
  expect(() => load({})).toThrow(
    "model.intermediateSize: precision fp8 needs a multiple of 16 for intermediateSize, got 100",
  );
  expect(() => load({ precision: "bf16" })).not.toThrow();
});
