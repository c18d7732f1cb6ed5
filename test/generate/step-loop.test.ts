import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { tensor } from "../../lib/core/create.js";
import { memory, synchronize } from "../../lib/core/runtime.js";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { Sequence } from "../../lib/generate/sequence.js";
import { StepLoop } from "../../lib/generate/step-loop.js";
import { paddedRows, paddedTokens } from "../../lib/generate/step-sizes.js";
import type { Cache, Context, PagedCache } from "../../lib/model/language-model.js";
import { Llama } from "../../lib/model/llama.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { add } from "../../lib/ops/index.js";

const config = llamaConfig({
  vocabSize: 97,
  hiddenSize: 64,
  intermediateSize: 96,
  layers: 2,
  heads: 4,
  kvHeads: 2,
  contextLength: 128,
  ropeTheta: 10_000,
  rmsNormEps: 1e-5,
  tieEmbeddings: false,
});

let model: Llama;
beforeAll(async () => {
  model = await Llama.create(config, { seed: 1 });
});
afterAll(() => model.dispose());

const loopOf = (of: Llama, options: object = {}) =>
  new StepLoop(of, {
    pages: 24,
    pageSize: 32,
    mostPages: 4,
    maxBatch: 8,
    promptTokens: 40,
    prefixCache: false,
    banned: [],
    ...options,
  });

/** The tokens of sequences that start together and end one after the other. */
async function tokensOf(loop: StepLoop, count: number): Promise<number[][]> {
  const texts: number[][] = [];
  await Promise.all(
    Array.from({ length: count }, (_, n) => {
      const prompt = Array.from({ length: 3 + 9 * n }, (_, i) => (i * 31 + n * 7) % 97);
      const own: number[] = [];
      texts.push(own);
      return new Promise<void>((resolve, reject) => {
        const sampling = { temperature: n % 2, seed: n, topP: 0.9 };
        const settings = { maxTokens: 4 + 3 * n, ends: new Set<number>(), sampling };
        const listener = {
          onToken: ({ id }: { id: number }) => own.push(id) > 0,
          onEnd: () => resolve(),
          onError: reject,
        };
        loop.add(new Sequence(prompt, { ...settings, bias: null, top: 0 }, listener));
      });
    }).concat([Promise.resolve(loop.wake())]),
  );
  await loop.idle();
  return texts;
}

describe("steps of a few sizes", () => {
  test("hold what they are for, at little more than its size", () => {
    for (let count = 1; count <= 3000; count++) {
      for (const padded of [paddedRows(count), paddedTokens(count)]) {
        expect(padded).toBeGreaterThanOrEqual(count);
        expect(padded).toBeLessThan(Math.max(2 * count, count + 64));
      }
    }
    expect(new Set(Array.from({ length: 256 }, (_, i) => paddedRows(i + 1))).size).toBeLessThan(16);
  });

  test("give the tokens of steps without rows to fill them, recorded or not", async () => {
    const [padded, exact] = [loopOf(model, { pads: true }), loopOf(model, { pads: false })];
    const tokens = await tokensOf(exact, 7);
    expect(tokens.map(({ length }) => length)).toEqual([4, 7, 10, 13, 16, 19, 22]);
    expect(await tokensOf(padded, 7)).toEqual(tokens);
    for (const loop of [padded, exact]) {
      expect(loop.state.recordedSteps).toBeGreaterThan(10);
      expect(loop.state.recordedSteps).toBeLessThan(loop.state.steps);
      loop.free();
    }
  });
});

test("a model that copies from the host in each step runs without recordings", async () => {
  class Copying extends Llama {
    override hidden(ids: Tensor, cache?: Cache | PagedCache, context?: Context): Tensor {
      const hidden = super.hidden(ids, cache, context);
      return scope(() => add(hidden, tensor([0], { device: this.device })));
    }
  }
  const copying = new Copying(config).allocate({ seed: 1 });
  const [loop, plain] = [loopOf(copying), loopOf(model)];
  expect(await tokensOf(loop, 3)).toEqual(await tokensOf(plain, 3));
  expect(loop.state).toMatchObject({ recordedSteps: 0, steps: plain.state.steps });
  for (const own of [loop, plain]) own.free();
  copying.dispose();
});

test("a loop gives back the memory of its recordings", async () => {
  await synchronize();
  const before = memory();
  const loop = loopOf(model);
  await tokensOf(loop, 4);
  loop.free();
  await synchronize();
  expect(memory()).toMatchObject({ tensors: before.tensors, bytes: before.bytes });
});
