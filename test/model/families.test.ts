/**
 * Relatives of Llama beside a decoder composed of plain operations, in training, over a cache and
 * over pages. test/golden compares them with another implementation.
 */
import { describe, expect, test } from "vitest";
import { noGrad } from "../../lib/core/autograd.js";
import { arange, tensor } from "../../lib/core/create.js";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import type { Context, Recompute } from "../../lib/model/language-model.js";
import { Llama } from "../../lib/model/llama.js";
import { type LlamaConfig, llamaConfig } from "../../lib/model/llama-config.js";
import { parameterCount } from "../../lib/model/shapes.js";
import { writeParameter } from "../../lib/nn/store.js";
import { composedAttention } from "../../lib/ops/attention.js";
import { composedHeadNorm } from "../../lib/ops/head-norm.js";
import { add, crossEntropy, embedding, ge, maximum, mul, reshape } from "../../lib/ops/index.js";
import { composedLinear } from "../../lib/ops/linear.js";
import { composedRmsNorm } from "../../lib/ops/rms-norm.js";
import { composedRope } from "../../lib/ops/rope.js";
import { split } from "../../lib/ops/slice.js";
import { silu } from "../../lib/ops/unary.js";
import { random, relativeError } from "../support/reference.js";

const time = 13;
const base = {
  vocabSize: 40,
  hiddenSize: 24,
  intermediateSize: 20,
  layers: 3,
  heads: 4,
  kvHeads: 2,
  contextLength: 32,
  ropeTheta: 10_000,
  rmsNormEps: 1e-5,
  tieEmbeddings: false,
};
const yarn = { type: "yarn", factor: 4, originalContextLength: 8 } as const;
const llama3 = {
  type: "llama3",
  factor: 8,
  originalContextLength: 16,
  lowFrequencyFactor: 1,
  highFrequencyFactor: 4,
} as const;

const cases: Record<string, LlamaConfig> = {
  "llama with biases and llama3": llamaConfig({
    ...base,
    attentionBias: true,
    feedForwardBias: true,
    ropeScaling: llama3,
  }),
  "llama with linear": llamaConfig({ ...base, ropeScaling: { type: "linear", factor: 4 } }),
  "mistral with a window": llamaConfig({ ...base, family: "mistral", slidingWindow: 5 }),
  "qwen2 with a window in its last layer": llamaConfig({
    ...base,
    family: "qwen2",
    tieEmbeddings: true,
    slidingWindow: 4,
    windowLayers: [2],
  }),
  "qwen3 with yarn and wide heads": llamaConfig({
    ...base,
    family: "qwen3",
    headSize: 10,
    attentionBias: true,
    ropeScaling: yarn,
  }),
  "smollm3 without positions in one layer": llamaConfig({
    ...base,
    family: "smollm3",
    positionlessLayers: [1],
    slidingWindow: 6,
    windowLayers: [0, 1],
    feedForwardBias: true,
  }),
};

/** A model with random biases and norms, so that each of them matters. */
async function create(config: LlamaConfig, dtype: "f32" | "bf16" = "f32"): Promise<Llama> {
  const model = await Llama.create(config, { seed: 4, dtype });
  scope(() => {
    for (const [name, parameter] of model.namedParameters()) {
      const range = name.endsWith("bias")
        ? { low: -0.5, high: 0.5 }
        : parameter.shape.length === 1
          ? { low: 0.5, high: 1.5 }
          : { low: -0.4, high: 0.4 };
      const { data, shape } = random(parameter.shape, name.length + parameter.size, range);
      writeParameter(parameter, tensor(Float32Array.from(data), { shape }));
    }
  });
  return model;
}

const ids = (rows = 2, columns = time) =>
  tensor(
    Int32Array.from({ length: rows * columns }, (_, i) => (i * 17 + ((i * i) % 7)) % 40),
    { shape: [rows, columns] },
  );
const targets = () =>
  tensor(
    Int32Array.from({ length: 2 * time }, (_, i) => (i === 5 ? -100 : (i * 11 + 3) % 40)),
    { shape: [2, time] },
  );
/** A second document from token 6 on. */
const firstKey = () => mul(ge(documentOf(), 6), 6);
const documentOf = () => add(reshape(arange(time), [1, time]), mul(ids(), 0));

/** Cosines and sines by the definitions of the papers, written once more. */
function tableOf({ headSize, ropeTheta, contextLength, ropeScaling }: LlamaConfig): Tensor {
  const plain = Array.from(
    { length: headSize / 2 },
    (_, i) => 1 / ropeTheta ** ((2 * i) / headSize),
  );
  let scale = 1;
  const frequencies = plain.map((f, i) => {
    if (!ropeScaling) return f;
    const { factor, originalContextLength: original = 0 } = ropeScaling;
    if (ropeScaling.type === "linear") return f / factor;
    if (ropeScaling.type === "llama3") {
      const wave = (2 * Math.PI) / f;
      if (wave < original / 4) return f;
      if (wave > original / 1) return f / factor;
      const smooth = (original / wave - 1) / (4 - 1);
      return ((1 - smooth) * f) / factor + smooth * f;
    }
    scale = 0.1 * Math.log(factor) + 1;
    const dimension = (turns: number) =>
      (headSize * Math.log(original / (turns * 2 * Math.PI))) / (2 * Math.log(ropeTheta));
    const low = Math.max(Math.floor(dimension(32)), 0);
    const high = Math.min(Math.ceil(dimension(1)), headSize - 1);
    const ramp = Math.min(1, Math.max(0, (i - low) / (high - low || 0.001)));
    return (f / factor) * ramp + f * (1 - ramp);
  });
  const values = Array.from({ length: contextLength }, (_, t) =>
    frequencies.flatMap((f) => [scale * Math.cos(t * f), scale * Math.sin(t * f)]),
  );
  return tensor(Float32Array.from(values.flat()), { shape: [contextLength, headSize / 2, 2] });
}

/** The decoder in plain operations. @returns logits (batch, time, vocabulary) */
function composed(model: Llama, input: Tensor, limits?: Tensor): Tensor {
  const { config } = model;
  const { heads, kvHeads, rmsNormEps: eps, slidingWindow: window } = config;
  const parameters = model.namedParameters();
  const of = (name: string) => parameters.get(name)?.tensor ?? null;
  const weight = (name: string) => of(`${name}.weight`) as Tensor;
  const project = (x: Tensor, name: string) => composedLinear(x, weight(name), of(`${name}.bias`));
  const table = tableOf(config);
  const index = documentOf();
  let x = embedding(input, weight("embedding"));
  for (let layer = 0; layer < config.layers; layer++) {
    const name = `blocks.${layer}.attention`;
    let qkv = project(composedRmsNorm(x, weight(`${name}Norm`), eps), `${name}.qkv`);
    if (config.family === "qwen3") {
      const norms = [weight(`${name}.queryNorm`), weight(`${name}.keyNorm`)] as const;
      qkv = composedHeadNorm(qkv, ...norms, { heads, kvHeads, eps });
    }
    if (!config.positionlessLayers?.includes(layer)) {
      const rotation = { heads: heads + 2 * kvHeads, rotatedHeads: heads + kvHeads };
      qkv = composedRope(qkv, table, rotation);
    }
    const narrow = window !== undefined && (config.windowLayers?.includes(layer) ?? true);
    const starts = maximum(narrow ? add(index, 1 - window) : mul(index, 0), limits ?? 0);
    const mixed = composedAttention(qkv, { heads, kvHeads, firstKey: starts });
    x = add(x, project(mixed, `${name}.output`));
    const forward = `blocks.${layer}.feedForward`;
    const normed = composedRmsNorm(x, weight(`${forward}Norm`), eps);
    const [gate, up] = split(project(normed, `${forward}.gateUp`), config.intermediateSize, -1) as [
      Tensor,
      Tensor,
    ];
    x = add(x, project(mul(silu(gate), up), `${forward}.down`));
  }
  return composedLinear(composedRmsNorm(x, weight("norm"), eps), model.headWeight.tensor);
}

async function gradients(model: Llama): Promise<Map<string, number[]>> {
  const values = new Map<string, number[]>();
  for (const [name, parameter] of model.namedParameters()) {
    values.set(name, [...((await parameter.tensor.grad?.toArray()) ?? [])]);
  }
  return values;
}

const valuesOf = async (make: () => Tensor): Promise<number[]> => [
  ...(await scope(() => noGrad(() => make().toArray()))),
];

describe.each(Object.entries(cases))("%s", (_, config) => {
  test.each([
    ["whole rows", () => undefined],
    ["two documents", firstKey],
  ])("equals the composed decoder in logits and gradients, for %s", async (_, limits) => {
    const model = await create(config);
    const contextOf = (): Context => {
      const firstKey = limits();
      return firstKey ? { firstKey } : {};
    };
    const ours = await valuesOf(() => model.forward(ids(), undefined, contextOf()));
    const theirs = await valuesOf(() => composed(model, ids(), limits()));
    expect(relativeError(ours, theirs)).toBeLessThan(2e-6);
    scope(() => {
      crossEntropy(composed(model, ids(), limits()), targets()).backward();
    });
    const wanted = await gradients(model);
    model.store.zeroGrad();
    scope(() => {
      model.loss({ inputs: ids(), targets: targets(), ...contextOf() }).backward();
    });
    for (const [name, gradient] of await gradients(model)) {
      expect(wanted.get(name)?.length, name).toBe(gradient.length);
      expect(relativeError(gradient, wanted.get(name) as number[]), name).toBeLessThan(2e-5);
    }
    model.dispose();
  });

  test("has the same bits recomputed, and after the scope of its loss has ended", async () => {
    const results: Map<string, number[]>[] = [];
    for (const recompute of ["none", "ffn", "block"] as Recompute[]) {
      const model = await create(config, "bf16");
      model.recompute = recompute;
      await scope(async () => {
        const batch = { inputs: ids(), targets: targets(), firstKey: firstKey() };
        const loss = scope(() => model.loss(batch));
        loss.backward();
        results.push(await gradients(model));
      });
      model.dispose();
    }
    expect(results[1]).toEqual(results[0]);
    expect(results[2]).toEqual(results[0]);
  });

  test("gives the logits of the whole text over a cache and over pages", async () => {
    const model = await create(config);
    const whole = await valuesOf(() => model.forward(ids(1)));
    const tokens = await scope(() => ids(1).toArray());
    const row = (from: number, to: number) =>
      tensor(tokens.slice(from, to), { shape: [1, to - from] });
    const steps = [[0, 7], ...Array.from({ length: time - 7 }, (_, i) => [7 + i, 8 + i])];
    const cached: number[] = [];
    const paged: number[] = [];
    await scope(async () => {
      const cache = model.createCache(1, 16);
      // A page of a GPU holds a multiple of 32 tokens.
      const page = ids().device.type === "cpu" ? 4 : 32;
      const layers = model.createPages(4, page);
      const table = tensor(Int32Array.of(2, 0, 3, 1), { shape: [1, 4] });
      for (const [from, to] of steps as [number, number][]) {
        cached.push(...(await valuesOf(() => model.forward(row(from, to), cache))));
        const size = to - from;
        const places = () => ({
          layers,
          table,
          sequences: tensor(new Int32Array(size), { shape: [1, size] }),
          positions: reshape(arange(size, { start: from }), [1, size]),
        });
        paged.push(...(await valuesOf(() => model.forward(row(from, to), places()))));
      }
    });
    expect(relativeError(cached, whole)).toBeLessThan(2e-6);
    expect(relativeError(paged, whole)).toBeLessThan(2e-6);
    model.dispose();
  });

  test("has the parameters that its cost counts", () => {
    const model = new Llama(config);
    expect(parameterCount(config)).toBe(model.parameterCount());
    const files = model.files.tensors.map(({ shape }) => shape.reduce((a, b) => a * b, 1));
    expect(files.reduce((a, b) => a + b, 0)).toBe(model.parameterCount());
  });
});

test("a window as long as the text changes no bit", async () => {
  const config = { ...base, family: "mistral" } as const;
  const [plain, narrow] = [
    await create(llamaConfig(config)),
    await create(llamaConfig({ ...config, slidingWindow: time })),
  ];
  const logits = (model: Llama) => valuesOf(() => model.forward(ids()));
  expect(await logits(narrow as Llama)).toEqual(await logits(plain as Llama));
});
