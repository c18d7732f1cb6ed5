/** Low-rank adapters on a frozen model. scripts/continue/compare_lora.py compares them with PEFT. */
import { readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { loadModel, saveModel } from "../../lib/checkpoint/model.js";
import { readSafetensors } from "../../lib/checkpoint/safetensors.js";
import { checkConfig } from "../../lib/config/resolve.js";
import { noGrad } from "../../lib/core/autograd.js";
import { tensor } from "../../lib/core/create.js";
import { ArgumentError, CheckpointError, UsageError } from "../../lib/core/errors.js";
import { native } from "../../lib/core/native.js";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { exportHuggingFace } from "../../lib/export/hugging-face.js";
import { mergeAdapter } from "../../lib/export/merge.js";
import { generateTokens } from "../../lib/generate/generate.js";
import { Llama } from "../../lib/model/llama.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { LoraModel } from "../../lib/model/lora.js";
import { type LoraTarget, loraParameterCount, loraTargets } from "../../lib/model/lora-config.js";
import { writeParameter } from "../../lib/nn/store.js";
import { AdamW } from "../../lib/optim/adamw.js";
import { trainStep } from "../../lib/train/step.js";
import { Trainer } from "../../lib/train/trainer.js";
import { randomIntegers, relativeError } from "../support/reference.js";
import { tinyConfig, tinyData, tinyModel } from "../support/tiny-run.js";

const shape = llamaConfig({ ...tinyModel, ropeTheta: 1e4, rmsNormEps: 1e-5, tieEmbeddings: true });
const ids = Int32Array.from({ length: 48 }, (_, i) => (i * 37 + 5) % 4096);
const batch = () => {
  const of = (values: Int32Array) => tensor(values, { shape: [2, 24], dtype: "i32" });
  return { inputs: of(ids), targets: of(ids.map((id) => (id + 1) % 4096)) };
};

/** A model whose adapters change its output. */
async function adapted(targets: readonly LoraTarget[], dropout = 0): Promise<LoraModel> {
  const base = await Llama.create(shape, { seed: 4, training: false });
  const model = LoraModel.create(base, { rank: 3, alpha: 6, targets, dropout }, { seed: 9 });
  for (const [index, parameter] of model.parameters().entries()) {
    const values = Float32Array.from(
      { length: parameter.size },
      (_, i) => 0.2 * Math.sin(i * 1.7 + index),
    );
    scope(() => writeParameter(parameter, tensor(values, { shape: parameter.shape })));
  }
  return model;
}

describe("a model with adapters", () => {
  test("begins as its base, and trains nothing else", async () => {
    const base = await Llama.create(shape, { seed: 4, training: false });
    const before = await scope(() => noGrad(() => base.forward(batch().inputs)).toArray());
    const model = LoraModel.create(base, { rank: 3, alpha: 6, targets: ["q_proj", "down_proj"] });
    const after = await scope(() => noGrad(() => model.forward(batch().inputs)).toArray());
    expect([...after]).toEqual([...before]);
    scope(() => model.loss(batch()).backward());
    for (const parameter of base.parameters()) expect(parameter.leaf.grad).toBeNull();
    expect(base.store.groups.every(({ master }) => master === null)).toBe(true);
    expect(model.parameterCount()).toBe(loraParameterCount(model.lora, shape));
    expect(model.files.tensors.map(({ name }) => name).slice(0, 2)).toEqual([
      "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
      "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
    ]);
    model.dispose();
  });

  test.each([
    [loraTargets, 0],
    [["v_proj", "gate_proj"] as const, 0],
    [loraTargets, 0.3],
  ])(
    "of %j with dropout %d has the same gradients with recomputation",
    async (targets, dropout) => {
      const gradients = [];
      for (const recompute of ["none", "ffn", "block"] as const) {
        const model = await adapted(targets, dropout);
        model.recompute = recompute;
        scope(() => model.inTraining(0, () => model.loss(batch()).backward()));
        const found = await Promise.all(
          model
            .parameters()
            .map(async ({ tensor: { grad } }) => [...((await grad?.toArray()) ?? [])]),
        );
        gradients.push(found);
        model.dispose();
      }
      const [none, ...others] = gradients;
      for (const [index, gradient] of (none ?? []).entries()) {
        expect(gradient.length).toBeGreaterThan(0);
        for (const other of others) expect(other[index]).toEqual(gradient);
      }
    },
  );

  test("writes tokens from its cache as from the whole text", async () => {
    const model = await adapted(loraTargets);
    const prompt = [5, 42, 79];
    const written: number[] = [];
    for await (const id of generateTokens(model, prompt, { maxTokens: 6, temperature: 0 })) {
      written.push(id);
    }
    const text = [...prompt, ...written];
    const logits = await scope(() =>
      noGrad(() => model.forward(tensor([text], { dtype: "i32" }))).toArray(),
    );
    for (const [place, id] of written.entries()) {
      const from = (prompt.length - 1 + place) * 4096;
      const row = logits.subarray(from, from + 4096);
      expect(row.indexOf(Math.max(...row))).toBe(id);
    }
    model.dispose();
  });

  describe("with dropout", () => {
    const row = (index: number) => {
      const of = (values: Int32Array) =>
        tensor(values.slice(24 * index, 24 * (index + 1)), { shape: [1, 24], dtype: "i32" });
      return { inputs: of(ids), targets: of(ids.map((id) => (id + 1) % 4096)) };
    };

    test("drops in passes of training alone, by the place of a row in the run", async () => {
      const [model, plain] = [await adapted(loraTargets, 0.4), await adapted(loraTargets)];
      const losses = async (of: LoraModel, batch: ReturnType<typeof row>, firstRow?: number) =>
        [
          ...(await scope(() => {
            const run = () => of.tokenLosses(batch);
            return (firstRow === undefined ? run() : of.inTraining(firstRow, run)).toArray();
          })),
        ] as number[];
      const still = await losses(plain, batch());
      expect(await losses(model, batch())).toEqual(still);
      const dropped = await losses(model, batch(), 6);
      expect(dropped).not.toEqual(still);
      expect(await losses(model, batch(), 6)).toEqual(dropped);
      expect(await losses(model, batch(), 8)).not.toEqual(dropped);
      // A row meets the same random numbers in whatever batch it is.
      expect(await losses(model, row(0), 6)).toEqual(dropped.slice(0, 24));
      expect(await losses(model, row(1), 7)).toEqual(dropped.slice(24));
      expect(await losses(model, batch())).toEqual(still);
      const alone = await scope(() =>
        model
          .inTraining(6, () => model.withoutAdapters(() => model.tokenLosses(batch())))
          .toArray(),
      );
      const base = await Llama.create(shape, { seed: 4, training: false });
      expect([...alone]).toEqual([...(await scope(() => base.tokenLosses(batch()).toArray()))]);
      for (const one of [model, plain, base]) one.dispose();
    });

    test("adds on average what the adapter adds without it", async () => {
      const model = await adapted(["down_proj"], 0.25);
      const hidden = async (run: () => Tensor) =>
        [...(await scope(() => noGrad(run).toArray()))] as number[];
      const inputs = row(0).inputs;
      const without = await hidden(() => model.withoutAdapters(() => model.hidden(inputs)));
      const change = (values: number[]) => values.map((value, i) => value - (without[i] as number));
      const whole = change(await hidden(() => model.hidden(inputs)));
      const mean = whole.map(() => 0);
      const times = 600;
      for (let time = 0; time < times; time++) {
        const found = await hidden(() => model.inTraining(time, () => model.hidden(inputs)));
        for (const [i, value] of change(found).entries())
          mean[i] = (mean[i] as number) + value / times;
      }
      // The norm at the end is not linear, so the means differ a little.
      expect(relativeError(mean, whole)).toBeLessThan(0.1);
      model.dispose();
    });

    test("asks for the place of a batch in the run", async () => {
      const model = await adapted(["q_proj"], 0.1);
      const optimizer = new AdamW(model.store);
      const plain = { inputs: ids, targets: ids, count: 2 };
      const step = trainStep({
        model,
        optimizer,
        nextBatch: async () => plain,
        accumulation: 1,
        lr: 1e-3,
        clip: 1,
      });
      await expect(step).rejects.toThrow(/expected firstRow in each batch/);
      optimizer.dispose();
      model.dispose();
    });
  });

  describe("in fp8", () => {
    const wide = llamaConfig({
      ...{ vocabSize: 96, hiddenSize: 64, intermediateSize: 112, layers: 3, heads: 4, kvHeads: 2 },
      ...{ contextLength: 32, ropeTheta: 1e4, rmsNormEps: 1e-5, tieEmbeddings: false },
    });
    const few = Int32Array.from(randomIntegers([96], 9, 0, 96).data);

    /** Losses and norms of some steps on one batch, and whether the base is as it was. */
    async function train(
      fp8: boolean,
      targets: readonly LoraTarget[],
      recompute: "none" | "ffn" | "block" = "none",
      dropout = 0,
    ): Promise<number[]> {
      const base = await Llama.create(wide, { dtype: "bf16", seed: 5, training: false });
      const model = LoraModel.create(base, { rank: 4, alpha: 8, targets, dropout }, { seed: 2 });
      model.recompute = recompute;
      model.fp8 = fp8;
      expect(model.fp8).toBe(fp8);
      const before = await base.parameters()[3]?.tensor.toArray();
      const optimizer = new AdamW(model.store);
      const results: number[] = [];
      for (let step = 0; step < 6; step++) {
        const inputs = { inputs: few, targets: few.map((id) => (id * 5 + 1) % 96) };
        const running = await trainStep({
          ...{ model, optimizer, accumulation: 2, lr: 1e-2, clip: 1 },
          nextBatch: async () => ({ ...inputs, count: 3, firstRow: 6 * step }),
        });
        const { loss, decision } = await running.figures;
        results.push(loss, decision[1] as number);
      }
      expect(await base.parameters()[3]?.tensor.toArray()).toEqual(before);
      optimizer.dispose();
      model.dispose();
      return results;
    }

    test.each([[loraTargets], [["q_proj", "v_proj"]], [["down_proj"]], [["o_proj", "up_proj"]]] as [
      readonly LoraTarget[],
    ][])("learns as in bf16, with equal bits again and with recomputation: %j", async (targets) => {
      const [fp8, bf16] = [await train(true, targets), await train(false, targets)];
      expect(fp8[0]).not.toBe(bf16[0]);
      expect(Math.abs((fp8[0] as number) / (bf16[0] as number) - 1)).toBeLessThan(0.003);
      const learned = (losses: number[]) => (losses[0] as number) - (losses.at(-2) as number);
      expect(learned(bf16)).toBeGreaterThan(0.05);
      expect(Math.abs(learned(fp8) / learned(bf16) - 1)).toBeLessThan(0.1);
      for (const recompute of ["none", "ffn", "block"] as const) {
        expect(await train(true, targets, recompute)).toEqual(fp8);
      }
    });

    test("drops the same elements with recomputation", async () => {
      const [plain, dropped] = [
        await train(true, loraTargets),
        await train(true, loraTargets, "none", 0.3),
      ];
      expect(dropped).not.toEqual(plain);
      expect(await train(true, loraTargets, "block", 0.3)).toEqual(dropped);
    });

    test("keeps the frozen weights in fp8 from one step to the next", async () => {
      const base = await Llama.create(wide, { dtype: "bf16", seed: 5, training: false });
      const settings = { rank: 4, alpha: 16, targets: loraTargets };
      const model = LoraModel.create(base, settings, { seed: 2 });
      model.fp8 = true;
      const maxima = vi.spyOn(native, "fp8Cast");
      const casts = async () => {
        const before = maxima.mock.calls.length;
        const of = (values: Int32Array) => tensor(values, { shape: [3, 32], dtype: "i32" });
        scope(() => model.loss({ inputs: of(few), targets: of(few) }).backward());
        return maxima.mock.calls.length - before;
      };
      const [first, second] = [await casts(), await casts()];
      // Four weights a layer are cast once.
      expect(first - second).toBe(4 * wide.layers);
      maxima.mockRestore();
      model.dispose();
    });
  });

  test("names targets that the model has not", async () => {
    const base = await Llama.create(shape, { seed: 4 });
    const targets = ["q_proj", "w_proj"] as unknown as LoraTarget[];
    expect(() => new LoraModel(base, { rank: 2, alpha: 2, targets })).toThrow(ArgumentError);
    expect(() => new LoraModel(base, { rank: 2, alpha: 2, targets })).toThrow(/received "w_proj"/);
    const twice: LoraTarget[] = ["q_proj", "up_proj", "q_proj"];
    expect(() => new LoraModel(base, { rank: 2, alpha: 2, targets: twice })).toThrow(
      /expected each target once, got q_proj again/,
    );
    base.dispose();
  });
});

describe("a run with adapters", () => {
  let folder: string;
  let base: string;
  let config: ReturnType<typeof tinyConfig>;
  beforeAll(async () => {
    const made = await tinyData();
    folder = made.folder;
    base = join(folder, "base");
    const model = await Llama.create(shape, { seed: 4 });
    await saveModel(base, model, { tokenizer: null });
    model.dispose();
    config = tinyConfig(made.data, join(folder, "run"), {
      precision: "fp32",
      model: undefined,
      init: { from: base },
      lora: { rank: 2, alpha: 4, targets: ["q_proj", "up_proj"] },
    });
  });
  afterAll(() => rm(folder, { recursive: true }));

  const run = async (given: typeof config, options: object = {}) => {
    const trainer = await Trainer.create(given, { onNotice: () => {}, ...options });
    const losses: number[] = [];
    for await (const { loss } of trainer.run()) losses.push(loss);
    const { checkpoint } = trainer.result;
    trainer.dispose();
    return { losses, checkpoint: checkpoint as string };
  };

  test("keeps PEFT's files, resumes with equal bits, and merges", async () => {
    const whole = await run(config);
    const settings = JSON.parse(
      await readFile(join(whole.checkpoint, "adapter_config.json"), "utf8"),
    );
    expect(settings).toMatchObject({ peft_type: "LORA", r: 2, lora_alpha: 4 });
    const { tensors } = await readSafetensors(join(whole.checkpoint, "adapter_model.safetensors"));
    expect(tensors.size).toBe(2 * 2 * tinyModel.layers);
    const again = await run(config, { resume: join(folder, "run", "step-0000000010") });
    expect(again.losses).toEqual(whole.losses.slice(10));
    const out = join(folder, "merged");
    await mergeAdapter(again.checkpoint, out, { dtype: "float32" });
    const [merged, original] = [await loadModel(out), await loadModel(base)];
    const q = (model: typeof merged) => model.parameters()[2]?.tensor.toArray();
    expect(
      relativeError([...((await q(merged)) ?? [])], [...((await q(original)) ?? [])]),
    ).toBeGreaterThan(1e-4);
    merged.dispose();
    original.dispose();
    await expect(mergeAdapter(again.checkpoint, out)).rejects.toThrow(UsageError);
    const other = join(folder, "other");
    const wide = await Llama.create({ ...shape, intermediateSize: 64 });
    await saveModel(other, wide, { tokenizer: null });
    wide.dispose();
    const misfit = mergeAdapter(again.checkpoint, join(folder, "x"), { base: other });
    await expect(misfit).rejects.toThrow(CheckpointError);
    await expect(misfit).rejects.toThrow(/do not fit model\.layers\.0\.mlp\.up_proj\.weight/);
    const change = async (fields: object) => {
      const path = join(again.checkpoint, "adapter_config.json");
      await writeFile(path, JSON.stringify({ ...settings, ...fields }));
      return mergeAdapter(again.checkpoint, join(folder, "changed"));
    };
    await expect(change({ r: 8 })).rejects.toThrow(/has rank 2, but r is 8/);
    await expect(change({ lora_alpha: 1e300 })).rejects.toThrow(/are not finite/);
    await change({ lora_alpha: 1e9 });
    // Within float32, and beyond float16.
    await expect(
      mergeAdapter(again.checkpoint, join(folder, "half"), { dtype: "float16" }),
    ).rejects.toThrow(/float16 cannot hold/);
    await expect(change({ base_model_name_or_path: "/nowhere" })).rejects.toThrow(
      /names its model, another folder is given as .*base: .*\/nowhere/,
    );
    await expect(exportHuggingFace(again.checkpoint, join(folder, "z"))).rejects.toThrow(
      /holds an adapter, not a whole model: .*llamaforge merge/,
    );
    const dora = { ...settings, use_dora: true };
    await writeFile(join(again.checkpoint, "adapter_config.json"), JSON.stringify(dora));
    await expect(mergeAdapter(again.checkpoint, join(folder, "y"))).rejects.toThrow(
      /use_dora: expected false, got true/,
    );
    await expect(loadModel(again.checkpoint)).rejects.toThrow(/llamaforge merge/);
    expect(checkConfig({ ...config, init: { from: again.checkpoint } }).problems).toEqual([
      {
        path: "init.from",
        message: expect.stringMatching(/holds an adapter, not a whole model: .*llamaforge merge/),
      },
    ]);
  });

  test("in fp8 resumes with equal bits, near the losses of bf16", async () => {
    const lora = { ...(config.lora as NonNullable<typeof config.lora>), dropout: 0.1 };
    const inFp8 = { ...config, precision: "fp8" as const, lora, out: join(folder, "fp8") };
    const whole = await run(inFp8);
    const again = await run(inFp8, { resume: join(folder, "fp8", "step-0000000010") });
    expect(again.losses).toEqual(whole.losses.slice(10));
    const inBf16 = { ...inFp8, precision: "bf16" as const, out: join(folder, "bf16") };
    const { losses } = await run(inBf16);
    expect(whole.losses).not.toEqual(losses);
    for (const [step, loss] of losses.entries()) {
      expect(Math.abs((whole.losses[step] as number) / loss - 1)).toBeLessThan(0.003);
    }
  });

  test("with dropout resumes with equal bits, tells PEFT of it, and may change it", async () => {
    const out = join(folder, "dropped");
    const lora = { ...(config.lora as NonNullable<typeof config.lora>), dropout: 0.2 };
    const whole = await run({ ...config, out, lora });
    const plain = await run({ ...config, out: join(folder, "plain") });
    expect(whole.losses).not.toEqual(plain.losses);
    const settings = JSON.parse(
      await readFile(join(whole.checkpoint, "adapter_config.json"), "utf8"),
    );
    expect(settings.lora_dropout).toBe(0.2);
    const resume = join(out, "step-0000000010");
    expect((await run({ ...config, out, lora }, { resume })).losses).toEqual(
      whole.losses.slice(10),
    );
    const notices: string[] = [];
    const changed = { ...config, out, lora: { ...lora, dropout: 0 } };
    await run(changed, { resume, onNotice: (notice: string) => notices.push(notice) });
    expect(notices.join("\n")).toMatch(/lora\.dropout: 0\.2 in the checkpoint, 0 now/);
  });

  test("is refused with other adapters, and without a model", async () => {
    await run({ ...config, out: join(folder, "again") });
    const lora = { rank: 3, alpha: 4, targets: ["q_proj" as const], dropout: 0 };
    await expect(run({ ...config, out: join(folder, "again"), lora, steps: 14 })).rejects.toThrow(
      /lora/,
    );
    const doubled = { ...lora, targets: ["q_proj", "q_proj"] };
    expect(checkConfig({ ...config, lora: doubled }).problems).toEqual([
      { path: "lora.targets", message: "expected each name once, got q_proj again" },
    ]);
    const { problems } = checkConfig({ ...config, init: {}, model: tinyModel });
    expect(problems).toEqual([
      {
        path: "lora",
        message: "expected init.from beside it: adapters belong to a model that exists",
      },
    ]);
  });
});
