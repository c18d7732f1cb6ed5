import { existsSync } from "node:fs";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import { ConfigError, type ConfigProblem, LlamaForgeError } from "../core/errors.js";
import { inWords, problemsOf } from "../core/option-problems.js";
import { inSchemaOrder, optionsOf, type Path, schemaAt, valueAt } from "../core/option-tree.js";
import { FileError, readSmallFileSync, sizeLimits, utf8Of } from "../files/small-file.js";
import { adapterAlone, adapterFiles } from "../model/lora-config.js";
import { presets } from "../model/presets.js";
import {
  type ArchitectureConfig,
  type ArchitectureFields,
  canonicalShape,
  explainShape,
  shapeFromHuggingFace,
  shapeProblemsOfFp8,
  validateShape,
} from "../model/shapes.js";
import { type ParsedRunConfig, type RunConfigInput, runSchema } from "./schema.js";
/**
 * Number format of weights and activations. With fp8, weights and activations are bf16, and the
 * products with the blocks' weights are computed in fp8.
 */
export type Precision = "fp32" | "bf16" | "fp8";

/** The dtype in which a model of this precision keeps its weights. */
export const weightsDtype = (precision: Precision): "f32" | "bf16" =>
  precision === "fp32" ? "f32" : "bf16";

/**
 * A run's configuration on a given machine: every default filled in, every cross-check passed, the
 * precision decided. Plain JSON.
 */
export interface RunConfig extends Omit<LoadedConfig, "precision"> {
  precision: Precision;
}

/** A complete configuration whose precision may still be `auto` (see lib/config/precision.ts). */
export interface LoadedConfig extends Omit<ParsedRunConfig, "model" | "data" | "optimizer"> {
  out: string;
  model: ArchitectureConfig;
  data: ParsedRunConfig["data"] & { sequenceLength: number };
  optimizer: ParsedRunConfig["optimizer"] & {
    minLr: number;
    warmupSteps: number;
    decaySteps: number;
  };
}

/**
 * Checks a configuration and fills in its defaults. A resolved configuration comes back unchanged.
 * @param source name of the configuration in the error
 * @throws ConfigError with all problems at once
 */
export function resolveConfig(
  input: RunConfigInput | LoadedConfig | RunConfig,
  source = "config",
): LoadedConfig {
  const { config, problems } = checkConfig(input);
  if (config === undefined) throw new ConfigError(source, problems);
  return config;
}

/** Returns the resolved configuration, or all of its problems. */
export function checkConfig(input: unknown): { config?: LoadedConfig; problems: ConfigProblem[] } {
  const parsed = runSchema.safeParse(input);
  const problems = problemsOf(runSchema, input, parsed).map(inWords);
  const read: Reader = (path) => {
    const option = schemaAt(runSchema, path)?.safeParse(valueAt(input, path));
    return option?.success ? option.data : undefined;
  };
  const model = resolveModel(read, input, problems);
  problems.push(...crossProblems(read, model));
  if (!parsed.success || model === undefined || problems.length > 0) return { problems };
  return { config: complete(parsed.data, model), problems };
}

/** Reads an option's value, or its schema default; undefined if it is invalid or absent. */
type Reader = (path: Path) => unknown;

function complete(parsed: ParsedRunConfig, model: ArchitectureConfig): LoadedConfig {
  const { optimizer, steps } = parsed;
  const decaySteps = optimizer.decaySteps ?? steps;
  const config: LoadedConfig = {
    ...parsed,
    out: parsed.out ?? `runs/${parsed.name}`,
    model,
    data: { ...parsed.data, sequenceLength: parsed.data.sequenceLength ?? model.contextLength },
    optimizer: {
      ...optimizer,
      minLr: optimizer.minLr ?? optimizer.peakLr / 10,
      warmupSteps:
        optimizer.warmupSteps ?? Math.min(2000, Math.floor(Math.min(steps, decaySteps) / 10)),
      decaySteps,
      ...(optimizer.schedule === "wsd" && {
        decayFrom: optimizer.decayFrom ?? Math.floor(0.9 * decaySteps),
      }),
    },
  };
  return inSchemaOrder(runSchema, config) as LoadedConfig;
}

const optionalModelFields = { ropeTheta: 10_000, rmsNormEps: 1e-5, tieEmbeddings: false } as const;

/**
 * Resolves the model from a preset with overriding fields, from fields alone, or from the folder
 * that `init.from` names.
 */
function resolveModel(
  read: Reader,
  input: unknown,
  problems: ConfigProblem[],
): ArchitectureConfig | undefined {
  const given = Object.keys(optionsOf(schemaAt(runSchema, ["model"])!)!).filter(
    (field) => valueAt(input, ["model", field]) !== undefined,
  );
  const wrong = problems.some(({ path }) => path === "model" || path.startsWith("model."));
  if (wrong) return undefined;

  const from = read(["init", "from"]) as string | undefined;
  if (from !== undefined && given.length === 0) return importedModel(from, problems);

  const preset = read(["model", "preset"]) as keyof typeof presets | undefined;
  const base: Partial<ArchitectureFields> = preset
    ? withoutDerivedSize(presets[preset])
    : optionalModelFields;
  const own = Object.fromEntries(
    given.filter((field) => field !== "preset").map((field) => [field, read(["model", field])]),
  );
  const fields = { ...base, ...own } as ArchitectureFields;
  const missing = missingFields(fields);
  if (missing.length > 0) {
    const start =
      given.length === 0 ? `expected a preset (${Object.keys(presets).join(", ")}) or` : "missing";
    problems.push({ path: "model", message: `${start} the fields ${missing.join(", ")}` });
    return undefined;
  }
  const model = canonicalShape({
    ...fields,
    headSize: fields.headSize ?? fields.hiddenSize / fields.heads,
  });
  const found = explainShape(validateShape(model, "model."), fields);
  problems.push(...found);
  if (found.length > 0) return undefined;
  if (from !== undefined) compareModels(model, importedModel(from, problems), from, problems);
  return model;
}

/** A shape without the head size, if that follows from fields that a recipe may change. */
function withoutDerivedSize(shape: ArchitectureConfig): ArchitectureFields {
  const { headSize, ...fields } = shape;
  return headSize * fields.heads === fields.hiddenSize ? fields : shape;
}

function missingFields(fields: ArchitectureFields): string[] {
  const required = [
    "vocabSize",
    "hiddenSize",
    "intermediateSize",
    "layers",
    "heads",
    "kvHeads",
  ] as const;
  return [...required, "contextLength" as const].filter((field) => fields[field] === undefined);
}

function importedModel(folder: string, problems: ConfigProblem[]): ArchitectureConfig | undefined {
  const file = join(folder, "config.json");
  if (!existsSync(file) && existsSync(join(folder, adapterFiles.config))) {
    problems.push({ path: "init.from", message: adapterAlone(folder) });
    return undefined;
  }
  try {
    const text = utf8Of(readSmallFileSync(file, { limit: sizeLimits.modelConfig }));
    return shapeFromHuggingFace(JSON.parse(text), file);
  } catch (error) {
    const said = error instanceof FileError ? error.message : String(error);
    const reason = error instanceof LlamaForgeError ? error.message : `${file}: ${said}`;
    problems.push({
      path: "init.from",
      message: `expected a Hugging Face model folder: ${reason}`,
    });
    return undefined;
  }
}

function compareModels(
  model: ArchitectureConfig,
  imported: ArchitectureConfig | undefined,
  folder: string,
  problems: ConfigProblem[],
): void {
  if (imported === undefined) return;
  const fields = new Set([...Object.keys(imported), ...Object.keys(model)]);
  for (const field of fields as Set<keyof ArchitectureConfig>) {
    if (isDeepStrictEqual(model[field], imported[field])) continue;
    const [mine, theirs] = [model, imported].map((shape) => inText(shape[field]));
    problems.push({
      path: `model.${field}`,
      message: `${mine} differs from ${theirs} in ${folder} (init.from); leave it out`,
    });
  }
}

function inText(value: unknown): string {
  if (value === undefined) return "none";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** Rules between options. Each rule looks only at options that are right by themselves. */
function crossProblems(read: Reader, model: ArchitectureConfig | undefined): ConfigProblem[] {
  const problems: ConfigProblem[] = [];
  const require = (holds: boolean, path: string, message: string) => {
    if (!holds) problems.push({ path, message });
  };
  const number = (path: string) => read(path.split(".")) as number | undefined;
  /** Requires the value of `path` to be at most (or below) that of `limit`. */
  const ordered = (
    path: string,
    relation: "<=" | "<",
    limit: string,
    limitValue = number(limit),
  ) => {
    const value = number(path);
    if (value === undefined || limitValue === undefined) return;
    const allowed = relation === "<=" ? "at most" : "below";
    const holds = relation === "<=" ? value <= limitValue : value < limitValue;
    require(holds, path, `expected ${allowed} ${limit} ${limitValue}, got ${value}`);
  };

  if (model && read(["precision"]) === "fp8") {
    problems.push(...shapeProblemsOfFp8(model, "model."));
  }
  if (read(["dpo"]) === undefined || !model) {
    ordered("data.sequenceLength", "<=", "model.contextLength", model?.contextLength);
  } else {
    const [length = 0, most] = [number("data.sequenceLength"), 2 * model.contextLength];
    // A window holds both answers of a pair, each with positions of its own.
    const message = `expected at most twice model.contextLength ${model.contextLength}, got ${length}`;
    require(length <= most, "data.sequenceLength", message);
  }
  require(read(["lora"]) === undefined ||
    read(["init", "from"]) !==
      undefined, "lora", "expected init.from beside it: adapters belong to a model that exists");
  const targets = (read(["lora", "targets"]) ?? []) as string[];
  const twice = targets.find((name, place) => targets.indexOf(name) < place);
  require(twice === undefined, "lora.targets", `expected each name once, got ${twice} again`);
  require(read(["dpo"]) === undefined ||
    read(["init", "from"]) !==
      undefined, "dpo", "expected init.from beside it: preferences are learnt relative to a model that exists");
  const smoothing = number("dpo.labelSmoothing") ?? 0;
  const loss = read(["dpo", "loss"]);
  require(!(smoothing > 0) ||
    loss === "sigmoid" ||
    loss ===
      "robust", "dpo.labelSmoothing", `expected loss sigmoid or robust beside it, got ${loss}`);
  require(read(["lora"]) === undefined ||
    read(["optimizer", "type"]) !==
      "muon", "optimizer.type", "expected adamw beside lora: Muon updates whole matrices, not their adapters");
  ordered("optimizer.minLr", "<=", "optimizer.peakLr");
  ordered("optimizer.warmupSteps", "<", "steps");
  ordered("optimizer.warmupSteps", "<", "optimizer.decaySteps");
  ordered("optimizer.warmupSteps", "<=", "optimizer.decayFrom");
  ordered("optimizer.decayFrom", "<", "optimizer.decaySteps");
  ordered("optimizer.decayFrom", "<", "steps");
  require(read(["optimizer", "decayFrom"]) === undefined ||
    read(["optimizer", "schedule"]) ===
      "wsd", "optimizer.decayFrom", "expected schedule wsd beside it: cosine decays from the warm-up on");
  ordered("guard.minimumHistory", "<=", "guard.window");
  // Only `window` skips are remembered, so a larger limit could never be exceeded.
  ordered("guard.maxSkipsPerWindow", "<", "guard.window");
  ordered("guard.maxConsecutiveSkips", "<", "guard.window");

  const [every, keepEvery] = [number("checkpoint.every"), number("checkpoint.keepEvery")];
  if (every !== undefined && keepEvery !== undefined && keepEvery % (every || 1) !== 0) {
    require(false, "checkpoint.keepEvery", `expected a multiple of checkpoint.every ${every}, got ${keepEvery}`);
  }
  const [keepBest, measured] = [number("checkpoint.keepBest"), number("evaluate.every")];
  if (keepBest !== undefined && keepBest > 0 && measured !== undefined && every !== undefined) {
    const saved = measured > 0 && (every % measured === 0 || (every > 0 && measured % every === 0));
    const message =
      `needs checkpoints at steps where the validation loss is measured: evaluate.every is ${measured}, ` +
      `checkpoint.every ${every}; expected one to be a multiple of the other`;
    require(saved, "checkpoint.keepBest", message);
  }
  const [samples, prompts] = [
    number("sample.every"),
    read(["sample", "prompts"]) as string[] | undefined,
  ];
  if (samples !== undefined && samples > 0 && prompts !== undefined) {
    require(prompts.length >
      0, "sample.prompts", `expected at least one text, since sample.every is ${samples}`);
  }
  return problems;
}
