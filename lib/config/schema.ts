import { z } from "zod";
import {
  belowOne,
  choice,
  flag,
  integer,
  path,
  positive,
  real,
  section,
  text,
  texts,
} from "../core/option-kinds.js";
import { strategyNames } from "../dist/strategy.js";
import { maxTokens, samplingOptions } from "../generate/schema.js";
import { loraTargets } from "../model/lora-config.js";
import { preferenceLosses } from "../model/preference-config.js";
import { type PresetName, presets } from "../model/presets.js";
import { shapeRules, shapeVariations } from "../model/shapes.js";

// The only list of a run's options. Defaults, ranges and descriptions live here; the help text,
// validation, types and saved configuration derive from it. `standard` describes a default that
// depends on other options (filled in by resolve.ts).

const maxSteps = 1_000_000_000;

interface NumberRule {
  min: number;
  max: number;
  integer: boolean;
  describe: string;
}

/** Optional numbers with the ranges that the model itself holds. */
function numbersOf<K extends string>(rules: Readonly<Record<K, NumberRule>>) {
  const fields = Object.entries<NumberRule>(rules).map(([name, rule]) => {
    const make = rule.integer ? integer : real;
    return [name, make(rule.min, rule.max, rule.describe).optional()];
  });
  return Object.fromEntries(fields) as Record<K, z.ZodOptional<z.ZodNumber>>;
}

/** The fields in which a model differs from a plain one of its kind. All may be left out. */
function variationFields() {
  const { meanings, families, ropeScalingTypes, ropeScalingRules } = shapeVariations;
  const { min, max } = shapeVariations.slidingWindowRange;
  const layers = (description: string) =>
    z
      .array(integer(0, 1023, "index of a layer"))
      .readonly()
      .meta({ description, expects: "a list of indices of layers", value: "n" })
      .optional();
  return {
    family: choice(families, meanings.family, { standard: families[0] }).optional(),
    ropeScaling: section(meanings.ropeScaling, {
      type: choice(ropeScalingTypes, "rule that stretches the frequencies"),
      ...numbersOf(ropeScalingRules),
      truncate: flag("yarn: whether limits between frequencies are whole numbers").optional(),
    }).optional(),
    attentionBias: flag(meanings.attentionBias).optional(),
    feedForwardBias: flag(meanings.feedForwardBias).optional(),
    slidingWindow: integer(min, max, meanings.slidingWindow, { standard: "none" }).optional(),
    windowLayers: layers(meanings.windowLayers),
    positionlessLayers: layers(meanings.positionlessLayers),
  };
}

const presetNames = Object.keys(presets) as [PresetName, ...PresetName[]];

const model = section("the model's shape: a preset, fields, or both (fields win)", {
  preset: choice(presetNames, "a named shape").optional(),
  ...numbersOf(shapeRules),
  tieEmbeddings: flag("whether the output head is the embedding matrix").optional(),
  ...variationFields(),
});

const data = section("what to train on", {
  train: z
    .record(z.string().min(1), positive(1e9, "weight of this data set in the mixture"))
    .refine((sources) => Object.keys(sources).length > 0)
    .meta({
      description:
        "data set folders (made by `llamaforge prepare`) and their weights; any positive scale",
      expects: "at least one `folder: weight` pair",
    }),
  sequenceLength: integer(1, 1_048_576, "tokens per training window", {
    standard: "model.contextLength",
  }).optional(),
  prefetch: integer(1, 64, "micro-batches read ahead of the model").default(4),
  slowSeconds: positive(
    86_400,
    "wait for data after which a note says so, again and again",
  ).default(30),
  hangSeconds: positive(
    604_800,
    "wait for data after which the run ends with 3: the storage hangs",
  ).default(1800),
  verifyShards: choice(
    ["stop", "warn", "off"],
    "hash the shards once per run while it trains; one that has changed ends the run with 3, or is told",
  ).default("stop"),
  maskDocuments: flag(
    "whether a token sees its own document only; TinyLlama lets it see all before it in the window",
  ).default(false),
  resetPositions: flag("whether positions count from the start of each document").default(false),
});

const batch = section("a step trains on microBatch x accumulation windows", {
  microBatch: integer(1, 65_536, "windows that go through the model at once").default(8),
  accumulation: integer(1, 65_536, "micro-batches whose gradients add up to one step").default(1),
});

const optimizer = section("AdamW or Muon, and how the learning rate rises and falls", {
  type: choice(
    ["adamw", "muon"],
    "muon: orthogonal updates for the layers' matrices (Jordan et al. 2024), AdamW for the rest",
  ).default("adamw"),
  peakLr: positive(10, "learning rate after the warm-up").default(4e-4),
  minLr: real(0, 10, "learning rate at the end of the decay", {
    standard: "peakLr / 10",
  }).optional(),
  warmupSteps: integer(0, maxSteps, "steps of linear warm-up", {
    standard: "a tenth of decaySteps, at most 2000",
  }).optional(),
  decaySteps: integer(1, maxSteps, "step at which the learning rate reaches minLr", {
    standard: "steps",
  }).optional(),
  schedule: choice(
    ["cosine", "wsd"],
    "cosine: falls from the warm-up on (as TinyLlama); wsd: stays at peakLr until decayFrom",
  ).default("cosine"),
  decayFrom: integer(0, maxSteps, "step at which wsd begins to decay", {
    standard: "nine tenths of decaySteps with wsd",
  }).optional(),
  decayShape: choice(
    ["sqrt", "linear", "cosine"],
    "how wsd falls, x from 0 to 1: 1 - sqrt(x), 1 - x, or half a cosine",
  ).default("sqrt"),
  momentum: belowOne("muon: decay of a matrix's momentum").default(0.95),
  beta1: belowOne("decay of the first moment").default(0.9),
  beta2: belowOne("decay of the second moment").default(0.95),
  eps: positive(1, "added to the root of the second moment").default(1e-8),
  weightDecay: real(0, 10, "decoupled weight decay").default(0.1),
  decay: choice(
    ["all", "matrices"],
    "what decays: every parameter (as TinyLlama) or matrices only",
  ).default("all"),
  clip: positive(
    1e9,
    "largest global gradient norm; longer gradients are scaled down to it",
  ).default(1),
});

const guard = section("skips a step whose loss or gradient norm is not finite or a spike", {
  zLoss: positive(
    1e9,
    "a loss this many standard deviations above the window's mean is a spike",
  ).default(6),
  zGradNorm: positive(1e9, "the same for the gradient norm").default(6),
  window: integer(2, 65_536, "recent good steps that mean and deviation are taken over").default(
    128,
  ),
  minimumHistory: integer(2, 65_536, "good steps seen before a spike can be called one").default(
    64,
  ),
  maxConsecutiveSkips: integer(1, 65_536, "more skips than this in a row end the run").default(10),
  maxSkipsPerWindow: integer(
    1,
    65_536,
    "more skips than this among the last `window` steps end it",
  ).default(32),
});

const checkpoint = section("when to save, and what to keep", {
  every: integer(0, maxSteps, "steps between checkpoints; 0: only at the end").default(1000),
  keepLast: integer(2, 1_000_000, "newest checkpoints that stay").default(2),
  keepEvery: integer(1, maxSteps, "checkpoints at multiples of this stay for ever", {
    standard: "none",
  }).optional(),
  keepBest: integer(0, 1_000_000, "checkpoints with the lowest validation loss that stay").default(
    0,
  ),
});

const canary = section("looks for hardware that computes or keeps wrong bits", {
  every: integer(
    0,
    maxSteps,
    "steps between checks: two more passes, and hashes of gradients and weights on the host; 0: none",
  ).default(0),
});

const evaluate = section("loss on held-out documents, and scores on tasks", {
  every: integer(0, maxSteps, "steps between evaluations; 0: only at the end").default(1000),
  batches: integer(1, 1_000_000, "micro-batches per evaluation, at most all there are").default(20),
  tasks: texts(
    "a list of tasks and groups, as `llamaforge eval --list-tasks` names them",
    "tasks and groups that the model is scored on",
  ).default([]),
  tasksEvery: integer(0, maxSteps, "steps between scores on tasks; 0: only at the end", {
    standard: "every",
  }).optional(),
  data: path("folder with the rows of the tasks, as of `llamaforge eval --data`").optional(),
  limit: integer(1, 1e9, "ask only the first questions of each task", {
    standard: "all",
  }).optional(),
  fewShot: integer(0, 1000, "solved examples before each question", {
    standard: "each task's own number",
  }).optional(),
});

const sample = section("text written by the model while it trains", {
  every: integer(0, maxSteps, "steps between samples; 0: only at the end").default(0),
  prompts: z
    .array(text(/[\s\S]/, "text that is not empty", "how one sample begins"))
    .max(100)
    .meta({ description: "beginnings to continue", expects: "a list of at most 100 texts" })
    .default([]),
  maxTokens: maxTokens(1, 65_536).default(64),
  ...samplingOptions,
});

const distributed = section("how the processes of a run work together", {
  reduce: choice(["fp32", "bf16"], "what gradients are summed in between processes").default(
    "fp32",
  ),
  timeoutSeconds: positive(
    86_400,
    "a collective that takes longer ends the run with exit code 6",
  ).default(600),
  startTimeoutSeconds: positive(
    86_400,
    "how long processes wait for each other before the first step",
  ).default(600),
  shardSize: integer(1, 65_536, "processes that share one copy of the model in hybrid_shard", {
    standard: "those of a host",
  }).optional(),
});

const init = section("where training starts from instead of random weights", {
  from: path("a Hugging Face model folder; its shape is the model's").optional(),
});

const lora = section(
  "low-rank adapters, which alone are trained; init.from names the frozen model",
  {
    rank: integer(1, 4096, "inner width of the adapters").default(16),
    alpha: positive(1e6, "the adapters' product is scaled by alpha / rank").default(32),
    targets: z
      .array(choice(loraTargets, "a matrix's name"))
      .min(1)
      .meta({
        description: "matrices that get an adapter in every layer",
        expects: `a list of ${loraTargets.join(", ")}`,
        value: "name",
      })
      .default([...loraTargets]),
    dropout: belowOne(
      "probability with which training drops an element of an adapter's input",
    ).default(0),
  },
);

const dpo = section(
  "learns from preferences (direct preference optimization); init.from names the model and reference",
  {
    loss: choice(
      preferenceLosses,
      "sigmoid (DPO), ipo, hinge, or robust (sigmoid for noisy preferences)",
    ).default("sigmoid"),
    beta: positive(1000, "how strongly the model is held to the reference").default(0.1),
    labelSmoothing: real(
      0,
      0.4999,
      "probability that a preference is the wrong way round; for sigmoid and robust",
    ).default(0),
  },
);

export const runSchema = section("a training run", {
  name: text(
    /^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/,
    "up to 100 letters, digits, dots, dashes and underscores",
    "name of the run",
  ).default("run"),
  seed: integer(0, Number.MAX_SAFE_INTEGER, "of initial weights, data order and samples").default(
    3407,
  ),
  out: path("folder of the run: metrics, checkpoints, report", {
    standard: "runs/<name>",
  }).optional(),
  device: text(/^(cpu|cuda(:\d{1,3})?)$/, "cpu, cuda or cuda:N", "where to compute").default("cpu"),
  precision: choice(
    ["auto", "fp32", "bf16", "fp8"],
    "of weights and activations; bf16 keeps fp32 master weights, gradients, norms and sums; " +
      "fp8 is bf16 with the products of the blocks' weights in fp8 (GPUs from Ada and Hopper on); " +
      "auto is bf16 where the device computes in it (CUDA, CPUs with AVX-512 bf16), else fp32",
  ).default("bf16"),
  threads: integer(1, 1024, "CPU threads of the kernels", { standard: "all cores" }).optional(),
  steps: integer(1, maxSteps, "optimizer steps of the whole run"),
  model: model.prefault({}),
  data,
  batch: batch.prefault({}),
  optimizer: optimizer.prefault({}),
  guard: guard.prefault({}),
  recompute: choice(
    ["none", "ffn", "block"],
    "activations computed again in the backward pass to save memory",
  ).default("none"),
  parallel: choice(
    strategyNames,
    "what processes that train together divide: nothing, optimizer state, everything, everything within a host",
  ).default("replicated"),
  distributed: distributed.prefault({}),
  checkpoint: checkpoint.prefault({}),
  canary: canary.prefault({}),
  evaluate: evaluate.prefault({}),
  sample: sample.prefault({}),
  init: init.prefault({}),
  lora: lora.optional(),
  dpo: dpo.optional(),
});

/** A configuration as people write it. Options with a default may be left out. */
export type RunConfigInput = z.input<typeof runSchema>;
/** A configuration whose options are each valid by themselves. */
export type ParsedRunConfig = z.output<typeof runSchema>;
