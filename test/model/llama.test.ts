import { mkdir, mkdtemp, readdir, readFile, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { describe, expect, test } from "vitest";
import { loadModel, saveModel } from "../../lib/checkpoint/model.js";
import { noGrad } from "../../lib/core/autograd.js";
import { tensor, zeros } from "../../lib/core/create.js";
import {
  ArgumentError,
  CheckpointError,
  ConfigError,
  ShapeError,
  UsageError,
} from "../../lib/core/errors.js";
import { memory, synchronize } from "../../lib/core/runtime.js";
import { scope } from "../../lib/core/scope.js";
import { markFile } from "../../lib/files/own-folder.js";
import { generateTokens } from "../../lib/generate/generate.js";
import type { LanguageModel, Recompute } from "../../lib/model/language-model.js";
import { Llama } from "../../lib/model/llama.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { presets } from "../../lib/model/presets.js";
import { parameterCount } from "../../lib/model/shapes.js";
import { AdamW } from "../../lib/optim/adamw.js";

const config = llamaConfig({
  vocabSize: 50,
  hiddenSize: 32,
  intermediateSize: 40,
  layers: 3,
  heads: 4,
  kvHeads: 2,
  contextLength: 24,
  ropeTheta: 10_000,
  rmsNormEps: 1e-5,
  tieEmbeddings: false,
});

const ids = (rows: number, columns: number, salt = 1) =>
  tensor(
    Int32Array.from(
      { length: rows * columns },
      (_, i) => (i * 17 + salt * 31 + ((i * i) % 7)) % 50,
    ),
    {
      shape: [rows, columns],
    },
  );

const folder = () => mkdtemp(join(tmpdir(), "llamaforge-model-"));

async function parameters(model: Llama): Promise<Map<string, number[]>> {
  const values = new Map<string, number[]>();
  for (const [name, parameter] of model.namedParameters()) {
    values.set(name, [...(await parameter.master.toArray())]);
  }
  return values;
}

async function gradients(model: Llama): Promise<Map<string, number[]>> {
  const values = new Map<string, number[]>();
  for (const [name, parameter] of model.namedParameters()) {
    values.set(name, [...((await parameter.tensor.grad?.toArray()) ?? [])]);
  }
  return values;
}

describe("initialisation", () => {
  test("follows TinyLlama: the standard deviations, norms at one", async () => {
    const model = await Llama.create(
      { ...config, hiddenSize: 64, vocabSize: 400, headSize: 16 },
      { seed: 3 },
    );
    const deviation = async (name: string) => {
      const values = (await model.namedParameters().get(name)?.tensor.toArray()) as Float32Array;
      const mean = values.reduce((a, b) => a + b, 0) / values.length;
      return Math.sqrt(values.reduce((a, b) => a + (b - mean) ** 2, 0) / values.length);
    };
    const std = Math.sqrt(2 / (5 * 64));
    expect((await deviation("embedding.weight")) / std).toBeCloseTo(1, 1);
    expect((await deviation("head.weight")) / std).toBeCloseTo(1, 1);
    expect((await deviation("blocks.1.feedForward.down.weight")) / (1 / 8 / 3)).toBeCloseTo(1, 1);
    expect((await deviation("blocks.1.attention.output.weight")) / (1 / 8 / 3)).toBeCloseTo(1, 1);
    expect(new Set(await model.norm.weight.tensor.toArray())).toEqual(new Set([1]));
    model.dispose();
  });

  test("depends on the seed alone", async () => {
    const [a, b, c] = await Promise.all([7, 7, 8].map((seed) => Llama.create(config, { seed })));
    const [first, second, other] = await Promise.all(
      [a, b, c].map((model) => parameters(model as Llama)),
    );
    expect(first).toEqual(second);
    expect(first?.get("head.weight")).not.toEqual(other?.get("head.weight"));
    for (const model of [a, b, c]) model?.dispose();
  });

  test("presets have the published numbers of parameters", () => {
    expect(parameterCount(presets["tinyllama-1.1b"])).toBe(1_100_048_384);
    expect(new Llama(presets["tinyllama-1.1b"]).parameterCount()).toBe(1_100_048_384);
    const quickstart = new Llama(presets.quickstart).parameterCount();
    expect(quickstart).toBeGreaterThan(6e6);
    expect(quickstart).toBeLessThan(7.5e6);
  });
});

describe("training the model", () => {
  test.each(["f32", "bf16"] as const)("recompute in %s gives the same bits", async (dtype) => {
    const results: Map<string, number[]>[] = [];
    for (const recompute of ["none", "ffn", "block"] as Recompute[]) {
      using _ = scope();
      const model = await Llama.create(config, { dtype, seed: 1 });
      model.recompute = recompute;
      model.loss({ inputs: ids(2, 11), targets: ids(2, 11, 2) }).backward();
      model.loss({ inputs: ids(2, 11, 3), targets: ids(2, 11, 4) }).backward();
      results.push(await gradients(model));
      model.dispose();
    }
    expect(results[0]?.get("blocks.0.attention.qkv.weight")?.length).toBe(64 * 32);
    expect(results[1]).toEqual(results[0]);
    expect(results[2]).toEqual(results[0]);
  });

  test("recompute keeps less", async () => {
    const peaks: number[] = [];
    for (const recompute of ["none", "ffn", "block"] as Recompute[]) {
      const model = await Llama.create(config, { seed: 1 });
      model.recompute = recompute;
      {
        using _ = scope();
        await synchronize();
        const before = memory().bytes;
        const loss = model.loss({ inputs: ids(8, 24), targets: ids(8, 24, 2) });
        await synchronize();
        peaks.push(memory().bytes - before);
        loss.backward();
      }
      model.dispose();
    }
    expect(peaks[1]).toBeLessThan((peaks[0] as number) * 0.8);
    expect(peaks[2]).toBeLessThan((peaks[1] as number) * 0.5);
  });

  test("a step leaves no tensors behind", async () => {
    const model = await Llama.create(config, { dtype: "bf16", seed: 1 });
    const optimizer = new AdamW(model.store);
    const counts: number[] = [];
    for (let step = 0; step < 4; step++) {
      {
        using _ = scope();
        const loss = model.loss({ inputs: ids(2, 9), targets: ids(2, 9, 2) });
        loss.backward();
        optimizer.step({ lr: 1e-3, clip: 1, loss });
      }
      await synchronize();
      counts.push(memory().tensors);
    }
    expect(new Set(counts.slice(1)).size).toBe(1);
    optimizer.dispose();
    model.dispose();
  });

  test("frozen parameters keep every bit and get no gradient", async () => {
    const model = await Llama.create(config, { seed: 2 });
    model.freeze("embedding").freeze("blocks.1.feedForward");
    const before = await parameters(model);
    const optimizer = new AdamW(model.store, { weightDecay: 0.1 });
    for (let step = 0; step < 2; step++) {
      using _ = scope();
      model.loss({ inputs: ids(2, 9), targets: ids(2, 9, 2) }).backward();
      optimizer.step({ lr: 1e-2 });
    }
    const after = await parameters(model);
    for (const [name, values] of after) {
      const frozen = name.startsWith("embedding") || name.startsWith("blocks.1.feedForward.");
      if (frozen) expect(values, name).toEqual(before.get(name));
      else expect(values, name).not.toEqual(before.get(name));
    }
    expect(() => model.freeze("blocks.9")).toThrow(ArgumentError);
    optimizer.dispose();
    model.dispose();
  });

  test("micro-batches add up to the gradient of the whole batch", async () => {
    using _ = scope();
    const model = await Llama.create(config, { seed: 3 });
    const x = ids(4, 8);
    const y = ids(4, 8, 2);
    model.loss({ inputs: x, targets: y }).backward();
    const whole = await gradients(model);
    model.store.zeroGrad();
    for (const half of [0, 1]) {
      model
        .loss({ inputs: x.view([2, 8], half * 16), targets: y.view([2, 8], half * 16) })
        .backward({ scale: 0.5 });
    }
    for (const [name, values] of await gradients(model)) {
      const reference = whole.get(name) as number[];
      const error = Math.hypot(...values.map((value, i) => value - (reference[i] as number)));
      expect(error / Math.hypot(...reference), name).toBeLessThan(2e-6);
    }
    model.dispose();
  });

  test("a config that no model can have is refused, all problems at once, before there is memory", async () => {
    const before = memory().tensors;
    const { rmsNormEps: _, ...withoutEps } = config;
    const wrong = { ...withoutEps, tieEmbeddings: "false", layers: 2.5 } as never;
    for (const make of [async () => new Llama(wrong), () => Llama.create(wrong)]) {
      const error = await make().catch((thrown: unknown) => thrown);
      expect(error).toBeInstanceOf(ConfigError);
      expect((error as ConfigError).problems.map(({ path }) => path)).toEqual([
        "layers",
        "rmsNormEps",
        "tieEmbeddings",
      ]);
    }
    expect(() => new Llama(undefined as never)).toThrow(ConfigError);
    await expect(Llama.create(config, { dtyp: "bf16" } as never)).rejects.toThrow(ArgumentError);
    expect(memory().tensors).toBe(before);
  });

  test("what is not token ids, a cache or options of documents is refused", async () => {
    using _ = scope();
    const model = await Llama.create(config, { seed: 1 });
    const any = (value: unknown) => value as never;
    expect(() => model.forward(any([1, 2]))).toThrow(
      "[Llama] expected a tensor for ids but received [1,2]",
    );
    expect(() => model.loss({ inputs: ids(1, 2), targets: any([1, 2]) })).toThrow(ArgumentError);
    expect(() => model.forward(ids(1, 2), any({ firstKey: ids(1, 2) }))).toThrow(
      /expected what createCache\(\) makes for cache/,
    );
    expect(() => model.forward(ids(1, 2), { ...model.createCache(1), position: any("0") })).toThrow(
      /cache.position/,
    );
    expect(() => model.forward(ids(1, 2), undefined, any({ firstkey: ids(1, 2) }))).toThrow(
      ArgumentError,
    );
    expect(() => model.createCache(0)).toThrow(ArgumentError);
    model.dispose();
  });

  test("generation refuses options of another name or type", async () => {
    const model = await Llama.create(config, { seed: 1 });
    const run = async (options: unknown, prompt: unknown = [1]) => {
      for await (const _ of generateTokens(model, prompt as never, options as never)) break;
    };
    await expect(run({ maxTokens: 1, top_k: 5 })).rejects.toThrow(
      /unknown option top_k; did you mean topK/,
    );
    await expect(run({ maxTokens: "1" })).rejects.toThrow(/an integer .*for maxTokens/);
    await expect(run(undefined)).rejects.toThrow(ArgumentError);
    await expect(run({ maxTokens: 1, stopAt: "." })).rejects.toThrow(/for stopAt/);
    await expect(run({ maxTokens: 1 }, "text")).rejects.toThrow(/an array of token ids for prompt/);
    await expect(run({ maxTokens: 1 }, [1, undefined])).rejects.toThrow(/got undefined/);
    await expect(run({ maxTokens: 1, topP: 0 })).rejects.toThrow(/topP/);
    model.dispose();
  });

  test("a step of the optimizer between forward and backward is an error, with recompute as well", async () => {
    for (const recompute of ["none", "ffn", "block"] as Recompute[]) {
      using _ = scope();
      const model = await Llama.create(config, { dtype: "bf16", seed: 1 });
      model.recompute = recompute;
      const optimizer = new AdamW(model.store);
      const loss = model.loss({ inputs: ids(2, 9), targets: ids(2, 9, 2) });
      optimizer.step({ lr: 1e-3 });
      expect(() => loss.backward()).toThrow(/AdamW.step has written over it since/);
      optimizer.dispose();
      model.dispose();
    }
  });

  test("bad token ids are an error that names the place", async () => {
    const model = await Llama.create(config, { seed: 1 });
    const run = (value: number) =>
      scope(() => ({
        loss: model
          .loss({ inputs: tensor([[1, value]], { dtype: "i32" }), targets: ids(1, 2) })
          .item(),
      }));
    await expect(run(50).loss).rejects.toThrow(/\[embeddingForward\].*50/);
    await expect(run(-1).loss).rejects.toThrow(/\[embeddingForward\].*-1/);
    const wrongTarget = scope(() => ({
      loss: model.loss({ inputs: ids(1, 2), targets: tensor([[1, 99]], { dtype: "i32" }) }).item(),
    }));
    await expect(wrongTarget.loss).rejects.toThrow(/99/);
    expect(() => model.loss({ inputs: zeros([1, 2]), targets: ids(1, 2) })).toThrow(ShapeError);
    expect(() => model.forward(ids(1, 25))).toThrow(
      /25 tokens are more than the model's context of 24/,
    );
    expect(() => new Llama(config).loss({ inputs: ids(1, 2), targets: ids(1, 2) })).toThrow();
    model.dispose();
  });
});

describe("generation", () => {
  test("with the cache gives what whole forwards give", async () => {
    const model = await Llama.create(config, { seed: 4 });
    const prompt = [3, 14, 15, 9, 2, 6];
    const cached: number[] = [];
    for await (const id of generateTokens(model, prompt, { maxTokens: 10, temperature: 0 }))
      cached.push(id);
    const text = [...prompt];
    for (let i = 0; i < 10; i++) {
      const logits = await scope(() =>
        noGrad(() =>
          model.forward(tensor(Int32Array.from(text), { shape: [1, text.length] })).toArray(),
        ),
      );
      const last = [...logits.slice(-50)];
      text.push(last.indexOf(Math.max(...last)));
    }
    expect(cached).toEqual(text.slice(6));
    model.dispose();
  });

  test("goes on beyond the context, is repeatable, stops where told, and leaves nothing behind", async () => {
    const model = await Llama.create(config, { dtype: "bf16", seed: 4 });
    const write = async (seed: number, stopAt: number | null = null) => {
      const out: number[] = [];
      for await (const id of generateTokens(model, [1, 2], { maxTokens: 60, seed, stopAt }))
        out.push(id);
      return out;
    };
    const first = await write(1);
    await synchronize();
    const before = memory();
    expect(first.length).toBe(60);
    expect(await write(1)).toEqual(first);
    expect(await write(2)).not.toEqual(first);
    const stop = first[20] as number;
    expect(await write(1, stop)).toEqual(first.slice(0, first.indexOf(stop)));
    await synchronize();
    // The count is lower if V8 collects handles of earlier tests meanwhile.
    expect(memory().tensors).toBeLessThanOrEqual(before.tensors);
    await expect(generateTokens(model, [], { maxTokens: 1 }).next()).rejects.toThrow(ArgumentError);
    await expect(generateTokens(model, [50], { maxTokens: 1 }).next()).rejects.toThrow(/0 to 49/);
    model.dispose();
  });
});

describe("Hugging Face folders", () => {
  test.each([
    ["f32", false, undefined],
    ["bf16", true, undefined],
    ["f32", true, 20_000],
  ] as const)(
    "%s, tied %s, shards of %s bytes: saved and loaded with equal bits",
    async (dtype, tieEmbeddings, shardBytes) => {
      const model = await Llama.create(
        { ...config, tieEmbeddings, ropeTheta: 500_000 },
        { dtype, seed: 6 },
      );
      const target = join(await folder(), "model");
      await saveModel(target, model, { ...(shardBytes && { shardBytes }), eosTokenId: 2 });
      const again = await loadModel(target, { dtype });
      expect(again.config).toEqual(model.config);
      const bits = async (source: LanguageModel) => {
        const parts: string[] = [];
        for (const { name, parameter, shape, offset } of source.files.tensors) {
          const bytes = await parameter.tensor.view(shape, offset).toBytes();
          parts.push(`${name} ${Buffer.from(bytes).toString("base64")}`);
        }
        return parts;
      };
      expect(await bits(again)).toEqual(await bits(model));
      await expect(saveModel(target, model)).rejects.toThrow(UsageError);
      model.dispose();
      again.dispose();
    },
  );

  test("a name that ends in a slash, an empty folder and what a killed call left are no hindrance", async () => {
    const model = await Llama.create(config, { seed: 6 });
    const target = join(await folder(), "model");
    await mkdir(`${target}.tmp`, { recursive: true });
    await writeFile(join(`${target}.tmp`, markFile), "");
    await writeFile(join(`${target}.tmp`, "config.json"), "{");
    await mkdir(target);
    await saveModel(`${target}/`, model);
    (await loadModel(target)).dispose();
    expect(await readdir(dirname(target))).toEqual(["model"]);
    model.dispose();
  });

  test("what does not fit is named, with both shapes", async () => {
    const model = await Llama.create(config, { seed: 6 });
    const target = join(await folder(), "model");
    await saveModel(target, model);
    const file = join(target, "config.json");
    const json = JSON.parse(await readFile(file, "utf8"));
    await writeFile(file, JSON.stringify({ ...json, intermediate_size: 44 }));
    await expect(loadModel(target)).rejects.toThrow(
      /gate_proj.weight: expected \[44,32\], got \[40,32\]/,
    );
    await writeFile(file, JSON.stringify({ ...json, num_hidden_layers: 4 }));
    await expect(loadModel(target)).rejects.toThrow(CheckpointError);
    await writeFile(file, JSON.stringify({ ...json, hidden_act: "relu" }));
    await expect(loadModel(target)).rejects.toThrow(/hidden_act/);
    await expect(loadModel(join(target, "none"))).rejects.toThrow(CheckpointError);
    model.dispose();
  });
});
