import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it, onTestFinished } from "vitest";
import { configHelp, loadConfig, parseConfig, resolveConfig } from "../../lib/config/index.js";
import { runSchema } from "../../lib/config/schema.js";
import { ConfigError, exitCodes, LlamaForgeError, UsageError } from "../../lib/core/errors.js";
import { metaOf } from "../../lib/core/option-kinds.js";
import { pathName } from "../../lib/core/option-names.js";
import { leaves, nearest } from "../../lib/core/option-tree.js";
import { toHuggingFace } from "../../lib/model/llama-hugging-face.js";
import { presets } from "../../lib/model/presets.js";

const minimal = "steps: 100\nmodel: {preset: quickstart}\ndata: {train: {data/a: 1}}\n";

function problemsOf(text: string, overrides: string[] = []): Record<string, string> {
  try {
    parseConfig(text, "run.yaml", overrides);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    expect(error.exitCode).toBe(exitCodes.usage);
    return Object.fromEntries(error.problems.map(({ path, message }) => [path, message]));
  }
  return {};
}

describe("a valid configuration", () => {
  it("is completed with defaults, those that follow from other options too", () => {
    const config = parseConfig(minimal);
    expect(config).toMatchObject({
      name: "run",
      out: "runs/run",
      seed: 3407,
      precision: "bf16",
      model: presets.quickstart,
      data: { train: { "data/a": 1 }, sequenceLength: 256, prefetch: 4 },
      optimizer: {
        peakLr: 4e-4,
        warmupSteps: 10,
        decaySteps: 100,
        beta2: 0.95,
        decay: "all",
        clip: 1,
      },
      guard: {
        zLoss: 6,
        window: 128,
        minimumHistory: 64,
        maxConsecutiveSkips: 10,
        maxSkipsPerWindow: 32,
      },
    });
    expect(config.optimizer.minLr).toBeCloseTo(4e-5, 12);
    expect(config.threads).toBeUndefined();
  });

  it("resolves to itself, text for text", () => {
    for (const text of [
      minimal,
      `${minimal}threads: 3\nname: b\nsample: {every: 5, prompts: [x]}`,
    ]) {
      const config = parseConfig(text);
      const again = resolveConfig(JSON.parse(JSON.stringify(config)));
      expect(JSON.stringify(again)).toBe(JSON.stringify(config));
    }
  });

  it("takes a preset with fields on top, and a model without a preset", () => {
    const wide = parseConfig(
      minimal.replace("preset: quickstart", "preset: quickstart, hiddenSize: 512"),
    );
    expect(wide.model).toMatchObject({ hiddenSize: 512, headSize: 128, layers: 6 });
    const own =
      "{vocabSize: 300, hiddenSize: 32, intermediateSize: 48, layers: 1, heads: 4, kvHeads: 2, contextLength: 16}";
    expect(parseConfig(minimal.replace("{preset: quickstart}", own)).model).toMatchObject({
      headSize: 8,
      ropeTheta: 10_000,
      rmsNormEps: 1e-5,
      tieEmbeddings: false,
    });
  });

  it("takes the variations of a preset's relatives, and leaves them out of a plain model", () => {
    const modelOf = (model: string) =>
      parseConfig(minimal.replace("{preset: quickstart}", model)).model;
    expect(modelOf("{preset: llama-3.2-1b}")).toEqual(presets["llama-3.2-1b"]);
    // The head size of Qwen3 does not follow from its width.
    expect(modelOf("{preset: qwen3-0.6b, hiddenSize: 256}")).toMatchObject({ headSize: 128 });
    expect(modelOf("{preset: mistral-7b, slidingWindow: 4096}")).toEqual({
      ...presets["mistral-7b"],
      slidingWindow: 4096,
    });
    expect(
      modelOf("{preset: smollm3-3b, layers: 4, positionlessLayers: [1], feedForwardBias: true}"),
    ).toMatchObject({ layers: 4, positionlessLayers: [1], feedForwardBias: true });
    expect(modelOf("{preset: quickstart, family: llama, attentionBias: false}")).toEqual(
      presets.quickstart,
    );
  });

  it.each([
    [
      "{preset: smollm3-3b, layers: 4}",
      "model.positionlessLayers",
      "indices of layers from 0 to 3",
    ],
    ["{preset: quickstart, slidingWindow: 8}", "model.slidingWindow", "the family llama has none"],
    ["{preset: mistral-7b, attentionBias: true}", "model.attentionBias", "with it: llama, qwen3"],
    ["{preset: quickstart, family: gemma}", "model.family", "expected one of llama, mistral"],
    ["{preset: quickstart, ropeScaling: {type: yarn, factor: 4}}", "model.ropeScaling", "Length"],
    ["{preset: quickstart, ropeScaling: {factor: 4}}", "model.ropeScaling.type", "expected one of"],
  ])("refuses the variation in %s", (model, path, message) => {
    const found = problemsOf(minimal.replace("{preset: quickstart}", model));
    const [name, text] = Object.entries(found)[0]!;
    expect(name).toContain(path);
    expect(name + text).toContain(message);
  });

  const recipes = readdirSync("configs").filter((name) => name.endsWith(".yaml"));
  /** Recipes that start from a model; a folder of a preset's shape stands in for it. */
  const started = ["sft.yaml", "dpo.yaml", "continue.yaml"];
  it.each(recipes.filter((file) => !started.includes(file)))("configs/%s", (file) => {
    const config = loadConfig(`configs/${file}`);
    expect(config.name).toBe(file.replace(".yaml", ""));
    expect(config.model).toEqual(presets[config.name as keyof typeof presets]);
  });

  it.each(started)("configs/%s has the shape of the model that it starts from", (file) => {
    const folder = mkdtempSync(join(tmpdir(), "llamaforge-config-"));
    onTestFinished(() => rmSync(folder, { recursive: true }));
    const shape = presets["smollm2-135m"];
    writeFileSync(join(folder, "config.json"), JSON.stringify(toHuggingFace(shape)));
    const config = loadConfig(`configs/${file}`, [`init.from=${folder}`]);
    expect(config.name).toBe(file.replace(".yaml", ""));
    expect(config.model).toEqual(shape);
    expect(() => loadConfig(`configs/${file}`)).toThrow(
      /init\.from: expected a Hugging Face model/,
    );
  });

  it("has TinyLlama's 3 trillion tokens in its recipe", () => {
    const { steps, batch, data } = loadConfig("configs/tinyllama-1.1b.yaml");
    const tokens = steps * batch.microBatch * batch.accumulation * data.sequenceLength;
    expect(tokens / 1e12).toBeCloseTo(3, 5);
  });
});

describe("problems", () => {
  it("come all at once with path, allowed range, nearest key and line", () => {
    const found = problemsOf(
      [
        "steps: 0",
        "modell: 3",
        "precision: bf61",
        "model: {preset: quickstart, kvHeads: 3}",
        "data:",
        "  train: {a: -1, b.c: .nan}",
        "  sequence_length: 12",
        "optimizer: {lr: 3, peakLr: 1e400, warmpSteps: 3}",
        "sample: {every: 3}",
        "microBatch: 4",
      ].join("\n"),
    );
    expect(found).toEqual({
      steps: "expected an integer from 1 to 1000000000, got 0 (line 1)",
      modell: "unknown option; did you mean model? (line 2)",
      precision: 'expected one of auto, fp32, bf16, fp8, got "bf61"; did you mean bf16? (line 3)',
      "model.kvHeads": "3 does not divide model.heads 4 (allowed: 1, 2, 4) (line 4)",
      "data.train.a": "expected a number above 0, at most 1000000000, got -1 (line 6)",
      "data.train.b.c": "expected a number above 0, at most 1000000000, got NaN (line 6)",
      "data.sequence_length": "unknown option; did you mean data.sequenceLength? (line 7)",
      "optimizer.lr": "unknown option; did you mean optimizer.peakLr? (line 8)",
      "optimizer.warmpSteps": "unknown option; did you mean optimizer.warmupSteps? (line 8)",
      "optimizer.peakLr": "expected a number above 0, at most 10, got Infinity (line 8)",
      "sample.prompts": "expected at least one text, since sample.every is 3",
      microBatch: "unknown option; did you mean batch.microBatch? (line 10)",
    });
  });

  it("name what is missing", () => {
    const found = problemsOf("");
    expect(Object.keys(found)).toEqual(["steps", "data.train", "model"]);
    expect(found.model).toContain("tinyllama-1.1b");
    expect(problemsOf(minimal.replace("preset: quickstart", "layers: 2")).model).toMatch(
      /missing the fields vocabSize, hiddenSize/,
    );
  });

  it.each([
    ["optimizer: {warmupSteps: 100}", "optimizer.warmupSteps", "expected below steps 100, got 100"],
    [
      "optimizer: {warmupSteps: 50, decaySteps: 50}",
      "optimizer.warmupSteps",
      "below optimizer.decaySteps 50",
    ],
    ["optimizer: {minLr: 1}", "optimizer.minLr", "expected at most optimizer.peakLr 0.0004, got 1"],
    [
      "guard: {window: 32, maxSkipsPerWindow: 8}",
      "guard.minimumHistory",
      "at most guard.window 32, got 64",
    ],
    [
      "guard: {window: 64, maxSkipsPerWindow: 64}",
      "guard.maxSkipsPerWindow",
      "below guard.window 64",
    ],
    [
      "guard: {window: 64, maxConsecutiveSkips: 64}",
      "guard.maxConsecutiveSkips",
      "below guard.window 64",
    ],
    [
      "checkpoint: {every: 300, keepBest: 1}\nevaluate: {every: 1000}",
      "checkpoint.keepBest",
      "evaluate.every is 1000, checkpoint.every 300; expected one to be a multiple of the other",
    ],
    [
      "checkpoint: {keepBest: 1}\nevaluate: {every: 0}",
      "checkpoint.keepBest",
      "evaluate.every is 0",
    ],
    [
      "checkpoint: {keepLast: 1}",
      "checkpoint.keepLast",
      "expected an integer from 2 to 1000000, got 1",
    ],
    [
      "checkpoint: {every: 300, keepEvery: 1000}",
      "checkpoint.keepEvery",
      "a multiple of checkpoint.every 300",
    ],
    [
      "batch: {microBatch: 1.5}",
      "batch.microBatch",
      "expected an integer from 1 to 65536, got 1.5",
    ],
    ["batch: {accumulation: '2'}", "batch.accumulation", 'got "2"'],
    ["optimizer: {beta1: 1}", "optimizer.beta1", "expected a number from 0 to below 1, got 1"],
    ["optimizer: {clip: 0}", "optimizer.clip", "expected a number above 0"],
    ["seed: -1", "seed", "got -1"],
    ["device: gpu", "device", 'expected cpu, cuda or cuda:N, got "gpu"'],
    ["name: a/b", "name", "letters, digits"],
    ["init: {from: /nowhere}", "init.from", "expected a Hugging Face model folder"],
    ["sample: {every: 1, prompts: ['']}", "sample.prompts[0]", "text that is not empty"],
    ["checkpoint: 5", "checkpoint", "expected a section with options of its own, got 5"],
    ["checkpoint: null", "checkpoint", "expected a section with options of its own, got null"],
    ["__proto__: {steps: 3}", "__proto__", "unknown option"],
    ["constructor: 3", "constructor", "unknown option"],
  ])("%s", (line, path, message) => {
    const found = problemsOf(`${minimal}${line}\n`);
    expect(Object.keys(found)).toEqual([path]);
    expect(found[path]).toContain(message);
  });

  it.each([
    ["heads: 5", "model.heads", "5 does not divide hiddenSize 256 (allowed: 1, 2, 4"],
    ["headSize: 7", "model.headSize", "expected an even number, since RoPE turns pairs, got 7"],
    ["hiddenSize: 12, heads: 4", "model.headSize", "got 3 = model.hiddenSize 12 / heads 4"],
    ["preset: quickstrat", "model.preset", "did you mean quickstart?"],
    ["contextLength: 0", "model.contextLength", "expected an integer from 1 to"],
  ])("model {%s}", (fields, path, message) => {
    const model = fields.includes("preset") ? fields : `preset: quickstart, ${fields}`;
    const found = problemsOf(minimal.replace("preset: quickstart", model));
    expect(Object.keys(found)).toEqual([path]);
    expect(found[path]).toContain(message);
  });

  it("says when windows are longer than the model's context", () => {
    const found = problemsOf(minimal.replace("{train:", "{sequenceLength: 257, train:"));
    expect(found["data.sequenceLength"]).toMatch(/at most model.contextLength 256, got 257/);
  });

  it.each([
    ["steps: 5\nsteps: 6\n", "line 2, column 1", "unique"],
    ["a: [1, 2\nb: 3", "line 2, column 1", ""],
    ["steps: !!js/function 5", "line 1, column 8", "Unresolved tag"],
    ["- a", "(all)", "expected"],
    ["just text", "(all)", "expected"],
  ])("YAML %j", (text, path, message) => {
    const found = problemsOf(text);
    expect(Object.keys(found)[0]).toBe(path);
    expect(found[path]).toContain(message);
  });

  it("says which file cannot be read", () => {
    expect(() => loadConfig("/nowhere/x.yaml")).toThrow(UsageError);
    expect(() => loadConfig("/nowhere/x.yaml")).toThrow("/nowhere/x.yaml");
  });

  it("never lets a random object through, nor crashes on one", () => {
    const keys = [...leaves(runSchema)].map(([path]) => String(path[0]));
    const value = fc.oneof(
      fc.anything({ maxDepth: 3 }),
      fc.constantFrom(0, -1, Number.NaN, Number.POSITIVE_INFINITY, "1"),
    );
    fc.assert(
      fc.property(fc.dictionary(fc.constantFrom(...keys, "x", "__proto__"), value), (object) => {
        try {
          resolveConfig(object as never);
        } catch (error) {
          expect(error).toBeInstanceOf(ConfigError);
          expect((error as ConfigError).problems.length).toBeGreaterThan(0);
          return;
        }
        throw new Error(`accepted ${JSON.stringify(object)}`);
      }),
      { numRuns: 300, seed: 7 },
    );
  });

  it("finds a wrong value in every single option", () => {
    for (const [path] of leaves(runSchema)) {
      const input: Record<string, unknown> = JSON.parse(
        JSON.stringify(resolveConfig(parseConfig(minimal))),
      );
      let section = input;
      for (const key of path.slice(0, -1)) {
        section[key] ??= {}; // an optional section that the recipe leaves out
        section = section[key] as Record<string, unknown>;
      }
      section[path.at(-1)!] = { wrong: () => 0 };
      let problems: string[] = [];
      try {
        resolveConfig(input as never);
      } catch (error) {
        problems = (error as ConfigError).problems.map((problem) => problem.path);
      }
      expect(problems.some((found) => found.startsWith(pathName(path)))).toBe(true);
    }
  });
});

describe("--set", () => {
  it("is typed by the schema and wins over the file", () => {
    const config = parseConfig(minimal, "run.yaml", [
      "name=123",
      "steps=7",
      "optimizer.peakLr=1e-3",
      "optimizer.decay=matrices",
      "model.tieEmbeddings=true",
      "data.train.data/b=x.y/z=4",
      "sample.prompts=[one, '2']",
      "model.layers=2",
    ]);
    expect(config).toMatchObject({
      name: "123",
      steps: 7,
      optimizer: { peakLr: 1e-3, decay: "matrices" },
      model: { tieEmbeddings: true, layers: 2 },
      data: { train: { "data/a": 1, "data/b=x.y/z": 4 } },
      sample: { prompts: ["one", "2"] },
    });
  });

  it("replaces a whole mapping", () => {
    expect(parseConfig(minimal, "x", ["data.train={data/b: 2}"]).data.train).toEqual({
      "data/b": 2,
    });
  });

  it.each([
    ["optimizer.peaklr=3", "unknown option optimizer.peaklr; did you mean optimizer.peakLr?"],
    ["peakLr=3", "did you mean optimizer.peakLr?"],
    ["optimizer=3", "is a section; set one of optimizer.type, optimizer.peakLr"],
    ["steps.x=3", "unknown option steps.x"],
    ["out=", "expected a value"],
    ["steps", 'expected "path=value"'],
    ["=3", 'expected "path=value"'],
    ["sample.prompts=[a", "Flow sequence"],
  ])("%s is an error", (override, message) => {
    const found = problemsOf(minimal, [override]);
    expect(Object.keys(found)).toEqual([`--set ${override}`]);
    expect(found[`--set ${override}`]).toContain(message);
  });

  it("reports its values' problems together with the file's", () => {
    const found = problemsOf(`${minimal}seed: x\n`, ["steps=abc", "nonsense=1"]);
    expect(Object.keys(found)).toEqual(["--set nonsense=1", "seed", "steps"]);
    expect(found.steps).not.toContain("line");
  });

  it("only ever fails with a typed error", () => {
    fc.assert(
      fc.property(fc.string(), fc.string(), (a, b) => {
        try {
          parseConfig(minimal, "x", [`${a}=${b}`]);
        } catch (error) {
          expect(error).toBeInstanceOf(LlamaForgeError);
        }
      }),
      { numRuns: 300, seed: 11 },
    );
  });
});

describe("the help", () => {
  it("lists every option with description, range and default", () => {
    const help = configHelp();
    for (const [path, option] of leaves(runSchema)) {
      expect(help).toContain(`  ${pathName(path)} `);
      expect(help).toContain(metaOf(option).description);
      expect(help).toContain(metaOf(option).expects);
    }
    expect(help).toContain("an integer from 1 to 1000000000; required");
    expect(help).toContain("default peakLr / 10");
  });
});

describe("nearest", () => {
  it.each([
    ["micro_batch", "microBatch"],
    ["warmpSteps", "warmupSteps"],
    ["cilp", "clip"],
    ["LR", "peakLr"],
  ])("%s is %s", (word, expected) => {
    expect(nearest(word, ["peakLr", "microBatch", "warmupSteps", "clip"])).toBe(expected);
  });

  it("says nothing when nothing is like it", () => {
    expect(nearest("zzzzzz", ["peakLr", "microBatch"])).toBeUndefined();
    expect(nearest("", ["peakLr"])).toBeUndefined();
  });
});
