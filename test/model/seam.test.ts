/**
 * The members of every language model: losses, losses token by token, a cache with a sliding window,
 * files, costs.
 */
import { describe, expect, test } from "vitest";
import { noGrad } from "../../lib/core/autograd.js";
import { tensor } from "../../lib/core/create.js";
import { ArgumentError } from "../../lib/core/errors.js";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { generateTokens } from "../../lib/generate/generate.js";
import { createModel, describeModel } from "../../lib/model/architectures.js";
import { LanguageModel, type ModelConfig } from "../../lib/model/language-model.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { costOf } from "../../lib/model/shapes.js";
import { Embedding, Linear } from "../../lib/nn/index.js";
import { relativeError } from "../support/reference.js";

const config = llamaConfig({
  vocabSize: 50,
  hiddenSize: 64,
  intermediateSize: 96,
  layers: 2,
  heads: 4,
  kvHeads: 2,
  contextLength: 24,
  ropeTheta: 10_000,
  rmsNormEps: 1e-5,
  tieEmbeddings: false,
});
const [batch, time] = [2, 20];
const i32 = (values: Iterable<number>, shape: number[]) =>
  tensor(Int32Array.from(values), { shape, dtype: "i32" });
const ids = (seed = 1) =>
  i32(
    Array.from({ length: batch * time }, (_, i) => (i * 11 + seed * 17 + ((i * i) % 5)) % 50),
    [batch, time],
  );
const window = 6;
const firstKey = (from = 0, count = time) =>
  i32(
    Array.from({ length: batch * count }, (_, i) => Math.max(0, from + (i % count) - window + 1)),
    [batch, count],
  );

/** The least that a model of one's own is. */
class Bigram extends LanguageModel {
  readonly config: ModelConfig = { vocabSize: 50, contextLength: 32 };
  readonly embedding = new Embedding(50, 16, 1);
  readonly head = new Linear(16, 50, 0.1);

  override get headWeight() {
    return this.head.weight;
  }

  override hidden(input: Tensor): Tensor {
    return this.embedding.forward(input);
  }
}

describe.each(["f32", "bf16"] as const)("a model in %s", (dtype) => {
  test("has losses token by token whose mean is its loss", async () => {
    const model = await createModel(config, { dtype, seed: 3 });
    await scope(async () => {
      const masked = Array.from(await ids(2).toArray(), (id, i) => (i % 3 === 0 ? -100 : id));
      const targets = i32(masked, [batch, time]);
      const losses = [...(await model.tokenLosses({ inputs: ids(), targets }).toArray())];
      const loss = await noGrad(() => model.loss({ inputs: ids(), targets })).item();
      const counted = losses.filter((_, i) => masked[i] !== -100);
      expect(losses.length).toBe(batch * time);
      expect(losses.filter((_, i) => masked[i] === -100).every((value) => value === 0)).toBe(true);
      const mean = counted.reduce((sum, value) => sum + value, 0) / counted.length;
      expect(relativeError([mean], [loss])).toBeLessThan(1e-6);
    });
    model.dispose();
  });

  test("sees a sliding window alike with a cache and without", async () => {
    const model = await createModel(config, { dtype, seed: 4 });
    await scope(async () => {
      const at = (make: () => Tensor) => noGrad(make).toArray();
      const whole = await at(() => model.forward(ids(), undefined, { firstKey: firstKey() }));
      const cache = model.createCache(batch);
      const all = await ids().toArray();
      const parts: number[][] = [];
      const starts = [0, 7, 8, 9];
      for (const [index, from] of starts.entries()) {
        const count = (starts[index + 1] ?? time) - from;
        const rows = [0, 1].flatMap((row) => [
          ...all.slice(row * time + from, row * time + from + count),
        ]);
        const context = { firstKey: firstKey(from, count) };
        const logits = await at(() => model.forward(i32(rows, [batch, count]), cache, context));
        for (const row of [0, 1]) {
          parts[row] = [
            ...(parts[row] ?? []),
            ...logits.slice(row * count * 50, (row + 1) * count * 50),
          ];
        }
      }
      expect(relativeError(parts.flat(), [...whole])).toBeLessThan(dtype === "f32" ? 1e-5 : 2e-2);
      const causal = await at(() => model.forward(ids()));
      expect(relativeError([...whole], [...causal])).toBeGreaterThan(0.01);
    });
    model.dispose();
  });
});

test("a model of one's own has a loss, files and a cost, and says what it lacks", async () => {
  const model = new Bigram().allocate({ seed: 5 });
  await scope(async () => {
    const loss = model.loss({ inputs: ids(), targets: ids(2) });
    expect(await loss.item()).toBeGreaterThan(0);
    expect(model.forward(ids()).shape).toEqual([batch, time, 50]);
  });
  expect(() => model.allocate()).toThrow(ArgumentError);
  expect(() => model.createCache(1)).toThrow(/Bigram .* has no cache/);
  expect(() => new Bigram().loss({ inputs: ids(), targets: ids() })).toThrow(/memory/);
  expect(model.files.tensors.map(({ name, shape }) => [name, shape])).toEqual([
    ["embedding.weight", [50, 16]],
    ["head.weight", [50, 16]],
  ]);
  expect(model.files.config({ eosTokenId: 2 })).toMatchObject({
    architectures: ["Bigram"],
    vocabSize: 50,
    eos_token_id: 2,
  });
  expect(model.cost).toMatchObject({ parameterCount: 1600, parameters: null, pass: null });
  model.dispose();
});

test("an architecture's cost is that of the model it describes", () => {
  const cost = costOf(config);
  const model = describeModel(config);
  expect(cost.parameterCount).toBe(model.parameterCount());
  expect(model.cost.flops(16)).toEqual(cost.flops(16));
  expect(cost.pass).toMatchObject({ blocks: 2, headWidth: 64, vocabSize: 50, tiedHead: false });
});

test("a model without an output head is refused by the name of what it lacks", () => {
  class Headless extends Bigram {
    override get headWeight() {
      return undefined as never;
    }
  }
  const model = new Headless().allocate();
  const wrong = () => model.loss({ inputs: ids(), targets: ids() });
  expect(wrong).toThrow(ArgumentError);
  expect(wrong).toThrow("[Headless] expected a Parameter for headWeight but received undefined");
  model.dispose();
});

describe("generation refuses a model of one's own", () => {
  /** Runs generation over a model whose pages are made by `createPages`. */
  async function generateWith(createPages?: () => unknown, more: Partial<ModelConfig> = {}) {
    class Paged extends Bigram {
      override readonly config = { vocabSize: 50, contextLength: 32, ...more };
      override createPages(count: number, size: number) {
        return (createPages ? createPages() : super.createPages(count, size)) as Tensor[];
      }
    }
    const model = new Paged().allocate();
    try {
      for await (const _ of generateTokens(model, [1, 2], { maxTokens: 2 }));
    } finally {
      model.dispose();
    }
  }

  test.each([
    ["without a paged cache", undefined, /Paged has no paged cache, which generation needs/],
    ["that makes no pages", () => undefined, /result of Paged.createPages but received undefined/],
    ["whose pages are no list", () => ({}), /an array of tensors for the result of Paged/],
    ["whose pages are no tensors", () => [5], /a tensor for layer 0 of the result of Paged/],
  ])("%s", async (_, createPages, message) => {
    await expect(generateWith(createPages)).rejects.toThrow(ArgumentError);
    await expect(generateWith(createPages)).rejects.toThrow(message);
  });

  test.each(["vocabSize", "contextLength"])("without %s", async (field) => {
    const failed = generateWith(undefined, { [field]: undefined });
    await expect(failed).rejects.toThrow(ArgumentError);
    await expect(failed).rejects.toThrow(`${field} of the model's config`);
  });
});
