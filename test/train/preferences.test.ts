/** Training on preferences: the loss, the reference, adapters, resuming, several processes. */
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { saveModel } from "../../lib/checkpoint/model.js";
import { checkConfig } from "../../lib/config/resolve.js";
import { tensor } from "../../lib/core/create.js";
import { ArgumentError, ShapeError, UsageError } from "../../lib/core/errors.js";
import { memory } from "../../lib/core/runtime.js";
import { scope } from "../../lib/core/scope.js";
import { Llama } from "../../lib/model/llama.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { type AnswerScores, preferenceLoss } from "../../lib/model/preference.js";
import { type PreferenceConfig, preferenceFigures } from "../../lib/model/preference-config.js";
import { AdamW } from "../../lib/optim/adamw.js";
import { prepare } from "../../lib/prepare/prepare.js";
import { PreferenceObjective } from "../../lib/train/preference-objective.js";
import { trainStep } from "../../lib/train/step.js";
import { Trainer } from "../../lib/train/trainer.js";
import { tinyConfig, tinyData, tinyModel } from "../support/tiny-run.js";

const quickstart = new URL("../../assets/quickstart", import.meta.url).pathname;
const model = { ...tinyModel, contextLength: 64 };
const shape = llamaConfig({ ...model, ropeTheta: 1e4, rmsNormEps: 1e-5, tieEmbeddings: false });

let folder: string;
let data: string;
let base: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "llamaforge-preferences-"));
  [data, base] = [join(folder, "data"), join(folder, "base")];
  const pairs = Array.from({ length: 60 }, (_, n) => ({
    prompt: `Is ${n} good? `,
    chosen: n % 2 ? "Yes, it is." : `Yes, ${n} is very good.`,
    rejected: n % 3 ? "No." : `No, ${n} is not good at all, never.`,
  }));
  await writeFile(join(folder, "p.jsonl"), pairs.map((one) => JSON.stringify(one)).join("\n"));
  await prepare({
    inputs: [{ path: join(folder, "p.jsonl"), kind: "preference" }],
    out: data,
    tokenizer: quickstart,
    validationFraction: 0.2,
  });
  const made = await Llama.create(shape, { seed: 4 });
  await saveModel(base, made, { tokenizer: null });
  made.dispose();
});
afterAll(() => rm(folder, { recursive: true }));

describe("the loss of preferences", () => {
  const values = (numbers: number[], requiresGrad = false) =>
    tensor(Float32Array.from(numbers), { requiresGrad });
  const scores = (policy: number[]): AnswerScores => ({
    policy: values(policy, true),
    reference: values([-9, -12, -3, -2.5, -40, -41]),
    lengths: values([3, 4, 1, 0, 7, 9]),
  });
  const policy = [-8, -12.5, -4, -2, -38, -52];
  const logSigmoid = (x: number) => -Math.log1p(Math.exp(-x));
  /** The losses of pairs in float64. */
  const expected = (policy: number[], { loss, beta, labelSmoothing = 0 }: PreferenceConfig) => {
    const ratios = policy.map((p, i) => p - ([-9, -12, -3, -2.5, -40, -41][i] as number));
    const lengths = [3, 4, 1, 1, 7, 9];
    const losses = [0, 2, 4].map((i) => {
      const [c, r] = [ratios[i] as number, ratios[i + 1] as number];
      const x = beta * (c - r);
      const right = -logSigmoid(x) * (1 - labelSmoothing);
      const wrong = -logSigmoid(-x) * labelSmoothing;
      if (loss === "ipo") return (c / lengths[i]! - r / lengths[i + 1]! - 1 / (2 * beta)) ** 2;
      if (loss === "hinge") return Math.max(0, 1 - x);
      return loss === "sigmoid" ? right + wrong : (right - wrong) / (1 - 2 * labelSmoothing);
    });
    return losses.reduce((sum, one) => sum + one, 0) / 3;
  };

  test.each<PreferenceConfig>([
    { loss: "sigmoid", beta: 0.1 },
    { loss: "sigmoid", beta: 0.5, labelSmoothing: 0.2 },
    { loss: "robust", beta: 0.3, labelSmoothing: 0.1 },
    { loss: "hinge", beta: 0.4 },
    { loss: "ipo", beta: 0.2 },
  ])("%j has its value, and finite differences as gradients", async (config) => {
    const given = scores(policy);
    const { loss } = preferenceLoss(given, config);
    expect(await loss.item()).toBeCloseTo(expected(policy, config), 5);
    loss.backward();
    const gradient = await given.policy.grad!.toArray();
    for (const [i, value] of policy.entries()) {
      const at = (change: number) => expected(policy.with(i, value + change), config);
      const difference = (at(1e-5) - at(-1e-5)) / 2e-5;
      expect(Math.abs(gradient[i]! - difference)).toBeLessThan(1e-5 * (1 + Math.abs(difference)));
    }
  });

  test("has its slope at the reference itself, where every run begins", async () => {
    const same = {
      ...scores([1, 2, 3, 4]),
      reference: values([1, 2, 3, 4]),
      lengths: values([1, 1, 1, 1]),
    };
    preferenceLoss(same, { loss: "sigmoid", beta: 0.2 }).loss.backward();
    const slopes = [...(await same.policy.grad!.toArray())];
    for (const [i, slope] of slopes.entries()) expect(slope).toBeCloseTo(i % 2 ? 0.05 : -0.05, 6);
  });

  test("has figures by TRL's names, and no overflow far away", async () => {
    const { figures } = preferenceLoss(scores(policy), { loss: "sigmoid", beta: 0.1 });
    const found = await figures.toArray();
    const named = Object.fromEntries(
      preferenceFigures.map((name, i) => [name, found[i] as number]),
    );
    expect(named["rewards/chosen"]).toBeCloseTo((0.1 * (1 - 1 + 2)) / 3, 6);
    expect(named["rewards/rejected"]).toBeCloseTo((0.1 * (-0.5 + 0.5 - 11)) / 3, 6);
    expect(named["rewards/accuracies"]).toBeCloseTo(2 / 3, 6);
    expect(named["rewards/margins"]).toBeCloseTo((0.1 * (1.5 - 1.5 + 13)) / 3, 6);
    expect(named["logps/chosen"]).toBeCloseTo(-50 / 3, 5);
    expect(named["logps/rejected"]).toBeCloseTo(-66.5 / 3, 5);
    const far = preferenceLoss(scores([-1e6, 0, 0, -1e6, 0, 0]), { loss: "sigmoid", beta: 1 });
    expect(await far.loss.item()).toBeGreaterThan(3e5);
  });

  test("names what is wrong with its arguments", () => {
    const config = { loss: "sigmoid", beta: 0.1 } as const;
    const odd = { ...scores(policy), policy: values([1, 2, 3]) };
    expect(() => preferenceLoss(odd, config)).toThrow(/two answers for each pair, got 3/);
    const short = { ...scores(policy), reference: values([1, 2]) };
    expect(() => preferenceLoss(short, config)).toThrow(ShapeError);
    const smooth = { loss: "ipo", beta: 1, labelSmoothing: 0.1 } as const;
    expect(() => preferenceLoss(scores(policy), smooth)).toThrow(
      /for sigmoid and robust, not for ipo/,
    );
  });
});

const run = async (changes: object, options: object = {}) => {
  const config = tinyConfig(data, join(folder, "run"), {
    model: undefined,
    precision: "fp32",
    steps: 8,
    init: { from: base },
    dpo: { loss: "sigmoid", beta: 0.5 },
    batch: { microBatch: 2, accumulation: 2 },
    optimizer: { peakLr: 2e-3, warmupSteps: 1 },
    data: { train: { [data]: 1 }, sequenceLength: 64 },
    checkpoint: { every: 4 },
    evaluate: { every: 8 },
    ...changes,
  });
  const trainer = await Trainer.create(config, { onNotice: () => {}, ...options });
  const steps: { loss: number; gradNorm: number; figures: Record<string, number> }[] = [];
  for await (const { loss, gradNorm, figures = {} } of trainer.run()) {
    steps.push({ loss, gradNorm, figures });
  }
  const { result } = trainer;
  trainer.dispose();
  return { steps, result };
};

/** Adapters begin at 0, and a random model's layers change little. */
const quick = { peakLr: 0.1, warmupSteps: 1, weightDecay: 0 };

describe("a run on preferences", () => {
  test.each([
    ["all weights", {}],
    ["adapters", { lora: { rank: 4, alpha: 8 }, optimizer: quick }],
    ["adapters with dropout", { lora: { rank: 4, alpha: 8, dropout: 0.2 }, optimizer: quick }],
  ])(
    "of %s begins at the reference, learns, and resumes with equal bits",
    async (name, changes) => {
      const out = join(folder, name.replaceAll(" ", "-"));
      const bytes = memory().bytes;
      const whole = await run({ out, ...changes });
      expect(memory().bytes).toBeLessThanOrEqual(bytes);
      const [first, ...later] = whole.steps;
      expect(first?.loss).toBeCloseTo(Math.LN2, 5);
      expect(first?.figures["rewards/margins"]).toBeCloseTo(0, 5);
      const last = later.at(-1);
      expect(last?.loss).toBeLessThan(0.6);
      expect(last?.figures["rewards/margins"]).toBeGreaterThan(0.1);
      expect(last?.figures["rewards/accuracies"]).toBeGreaterThan(0.7);
      const { validation } = whole.result;
      expect(validation?.loss).toBeLessThan(0.68);
      expect(validation?.bitsPerByte).toBeNull();
      expect(validation?.figures?.["rewards/accuracies"]).toBeGreaterThan(0.5);
      const again = await run({ out, ...changes }, { resume: join(out, "step-0000000004") });
      expect(again.steps).toEqual(whole.steps.slice(4));
      const lines = (await readFile(join(out, "metrics.jsonl"), "utf8")).trim().split("\n");
      expect(JSON.parse(lines[0]!).figures).toEqual(whole.steps[0]!.figures);
    },
  );

  test("has the same loss and gradient however its pairs lie in windows and micro-batches", async () => {
    const of = { steps: 1, optimizer: { peakLr: 1e-3, warmupSteps: 0 } };
    const one = await run({ ...of, out: join(folder, "a"), batch: { microBatch: 4 } });
    const split = { accumulation: 4, microBatch: 1 };
    const two = await run({ ...of, out: join(folder, "b"), batch: split });
    expect(two.steps[0]!.gradNorm / one.steps[0]!.gradNorm).toBeCloseTo(1, 4);
    expect(two.steps[0]!.loss).toBeCloseTo(one.steps[0]!.loss, 5);
  });

  test("takes windows of twice the model's context, for each answer has its own positions", async () => {
    const wide = { train: { [data]: 1 }, sequenceLength: 128 };
    const { steps } = await run({ out: join(folder, "wide"), data: wide });
    expect(steps[0]?.loss).toBeCloseTo(Math.LN2, 5);
    expect(steps.at(-1)?.loss).toBeLessThan(0.6);
    const longer = { ...wide, sequenceLength: 129 };
    await expect(run({ out: join(folder, "wider"), data: longer })).rejects.toThrow(
      /at most twice model\.contextLength 64, got 129/,
    );
  });

  test("learns from answers that are longer than the model's context", async () => {
    const long = join(folder, "long");
    const words = (word: string, n: number) => ` ${word}`.repeat(n);
    const pairs = Array.from({ length: 30 }, (_, n) => ({
      prompt: `Is ${n} good?`,
      chosen: words("yes", 30 + n),
      rejected: words("never", 60 + n),
    }));
    await writeFile(join(folder, "l.jsonl"), pairs.map((one) => JSON.stringify(one)).join("\n"));
    const inputs = [{ path: join(folder, "l.jsonl"), kind: "preference" as const }];
    await prepare({ inputs, out: long, tokenizer: quickstart, maxRunShare: 1 });
    const notices: string[] = [];
    const onNotice = (notice: string) => notices.push(notice);
    const of = { train: { [long]: 1 }, sequenceLength: 128 };
    const { steps } = await run({ out: join(folder, "cut"), data: of, steps: 3 }, { onNotice });
    expect(steps.at(-1)?.loss).toBeLessThan(Math.LN2);
    expect(notices.join("\n")).toMatch(/of \d+ pairs are longer than a window of 128 tokens/);
  });

  test("needs a recipe that says so, and a model to start from", async () => {
    await expect(run({ out: join(folder, "c"), dpo: undefined })).rejects.toThrow(UsageError);
    await expect(run({ out: join(folder, "c"), dpo: undefined })).rejects.toThrow(
      /holds preferences: say dpo in the recipe/,
    );
    const text = await tinyData();
    const config = { train: { [text.data]: 1 }, sequenceLength: 32 };
    await expect(run({ out: join(folder, "c"), data: config })).rejects.toThrow(
      /the recipe says dpo, but .* holds no preferences/,
    );
    await rm(text.folder, { recursive: true });
    const plain = { steps: 1, model, data: { train: { x: 1 } } };
    const problems = (dpo: object) => checkConfig({ ...plain, dpo }).problems;
    expect(problems({})[0]).toMatchObject({ path: "dpo", message: /expected init\.from/ });
    expect(problems({ loss: "ipo", labelSmoothing: 0.1 }).at(-1)).toMatchObject({
      path: "dpo.labelSmoothing",
    });
    expect(problems({ loss: "kto" })[0]?.path).toBe("dpo.loss");
  });

  test("refuses batches without pairs, and a model that has no reference", async () => {
    const trained = await Llama.create(shape, { seed: 1 });
    const optimizer = new AdamW(trained.store);
    const ids = new Int32Array(8);
    const plain = { inputs: ids, targets: ids, count: 1 };
    const step = (objective: PreferenceObjective, batch: typeof plain) =>
      trainStep({
        model: trained,
        optimizer,
        objective,
        nextBatch: async () => batch,
        accumulation: 1,
        lr: 1e-3,
        clip: 0,
      });
    const objective = new PreferenceObjective({ loss: "sigmoid", beta: 1 }, null);
    await expect(step(objective, plain)).rejects.toThrow(ArgumentError);
    await expect(step(objective, plain)).rejects.toThrow(/expected a batch of preferences/);
    const pairs = { ...plain, pairs: 1, answers: ids.with(4, 1) };
    await expect(step(objective, pairs)).rejects.toThrow(/expected a reference model/);
    optimizer.dispose();
    scope(() => trained.dispose());
  });
});
