import { DataError } from "../core/errors.js";
import { nearest } from "../core/option-tree.js";
import type { FewShot, Row, TaskData } from "./task.js";
import { choiceField, targetField, textField, wrongValue } from "./yaml-fields.js";
import { NamedFunction, type YamlSettings } from "./yaml-file.js";

// The settings of a YAML task beside its templates: data set, splits, examples, metrics.

/** Settings that are read here. */
const known = new Set([
  "task",
  "dataset_path",
  "dataset_name",
  "dataset_kwargs",
  "training_split",
  "validation_split",
  "test_split",
  "fewshot_split",
  "fewshot_config",
  "fewshot_delimiter",
  "num_fewshot",
  "process_docs",
  "process_results",
  "doc_to_text",
  "doc_to_target",
  "doc_to_choice",
  "description",
  "target_delimiter",
  "output_type",
  "metric_list",
  "generation_kwargs",
  "filter_list",
  "repeats",
  "metadata",
]);

/** Settings that change no score. */
const passive = new Set([
  "tag",
  "task_alias",
  "should_decontaminate",
  "doc_to_decontamination_query",
  "training_split",
  "unsafe_code",
]);

/** @throws DataError for settings that are unknown or not supported */
export function checkKeys(settings: YamlSettings): void {
  if ("group" in settings) {
    throw new DataError("expected a task, got a group: name its tasks instead");
  }
  for (const [key, value] of Object.entries(settings)) {
    if (known.has(key) || passive.has(key)) continue;
    if (value === null || value === false) continue;
    const near = nearest(key, known);
    throw new DataError(
      `expected settings that are supported, got ${key}` +
        (near === undefined ? "" : `; did you mean ${near}?`),
    );
  }
  if (settings.unsafe_code) throw new DataError("expected no unsafe_code: Python code is not run");
}

/** Names of splits as a task has them. */
export interface Splits {
  training: string | undefined;
  validation: string | undefined;
  test: string | undefined;
  /** Split that was named for examples. */
  fewShot: string | undefined;
}

/** Where a task's rows lie. */
export function dataOf(settings: YamlSettings): { data: TaskData; splits: Splits } {
  const config = fewShotConfig(settings);
  const splits = {
    training: optionalText(settings, "training_split"),
    validation: optionalText(settings, "validation_split"),
    test: optionalText(settings, "test_split"),
    fewShot: optionalText(config, "split") ?? optionalText(settings, "fewshot_split"),
  };
  const split = splits.test ?? splits.validation;
  if (split === undefined) {
    throw new DataError("expected a test_split or a validation_split, got neither");
  }
  const dataset = optionalText(settings, "dataset_path");
  if (dataset === undefined) throw wrongValue("dataset_path", "a data set", settings.dataset_path);
  const fewShotSplit = splits.fewShot ?? splits.training ?? splits.validation ?? split;
  const name = optionalText(settings, "dataset_name");
  const files = filesOf(settings);
  const revision = optionalText((settings.dataset_kwargs ?? {}) as YamlSettings, "revision");
  return {
    splits,
    data: {
      dataset,
      ...(name !== undefined && { config: name }),
      ...(revision !== undefined && { revision }),
      ...(files && { files }),
      split,
      fewShotSplit,
      columns: [],
    },
  };
}

/** `dataset_kwargs.data_files`, for data sets that are files of one's own. */
function filesOf({ dataset_kwargs: kwargs }: YamlSettings): Record<string, string> | null {
  const { data_files: files } = (kwargs ?? {}) as { data_files?: unknown };
  if (files === undefined) return null;
  const texts = typeof files === "object" && files !== null ? Object.entries(files) : [];
  if (texts.length > 0 && texts.every(([, path]) => typeof path === "string")) {
    return Object.fromEntries(texts);
  }
  throw wrongValue("dataset_kwargs.data_files", "a file for each split", files);
}

const samplers: Readonly<Record<string, FewShot["sampler"]>> = {
  default: "random",
  first_n: "first",
};

const exampleKeys = new Set([
  "sampler",
  "split",
  "samples",
  "fewshot_delimiter",
  "target_delimiter",
  "doc_to_text",
  "doc_to_target",
  "doc_to_choice",
]);

/** How a task's examples are chosen and shown. */
export function fewShotOf(settings: YamlSettings, splits: Splits, dataset: string): FewShot {
  const config = fewShotConfig(settings);
  const { sampler: samplerName = "default", samples } = config;
  const unknown = Object.keys(config).find((key) => !exampleKeys.has(key));
  if (unknown !== undefined) {
    throw new DataError(`expected settings that are supported, got fewshot_config.${unknown}`);
  }
  const sampler = samplers[String(samplerName)];
  if (sampler === undefined) {
    throw wrongValue("fewshot_config.sampler", "default or first_n", samplerName);
  }
  const { num_fewshot: count } = settings;
  const delimiter =
    optionalText(config, "fewshot_delimiter") ?? optionalText(settings, "fewshot_delimiter");
  const targetDelimiter = optionalText(config, "target_delimiter");
  return {
    count: typeof count === "number" ? count : 0,
    sampler,
    // The harness compares the settings, not the splits that it then reads.
    leavesOutQuestion: splits.fewShot === splits.test,
    ...(delimiter !== undefined && { delimiter }),
    ...(targetDelimiter !== undefined && { targetDelimiter }),
    ...(splits.fewShot === undefined && samples !== undefined && { examples: rowsOf(samples) }),
    ...ownFields(settings, config, dataset),
  };
}

/** Fields that show examples in another way than questions. */
function ownFields(
  settings: YamlSettings,
  config: YamlSettings,
  dataset: string,
): Pick<FewShot, "prompt" | "target"> {
  const choices = config.doc_to_choice ?? settings.doc_to_choice ?? null;
  const hasChoices = settings.doc_to_choice !== undefined && settings.doc_to_choice !== null;
  const isOwnTarget = config.doc_to_target !== undefined || config.doc_to_choice !== undefined;
  const name = (key: string) => `fewshot_config.${key}`;
  const text =
    config.doc_to_text === undefined
      ? null
      : textField(name("doc_to_text"), config.doc_to_text, dataset, hasChoices);
  const target = isOwnTarget
    ? targetField(
        name("doc_to_target"),
        config.doc_to_target ?? settings.doc_to_target,
        dataset,
        hasChoices,
      )
    : null;
  const choice = choices === null ? null : choiceField(name("doc_to_choice"), choices, dataset);
  const targetText = (row: Row): string => {
    const found = target?.(row);
    if (typeof found === "number" && choice !== null) return choice(row)[found] ?? "";
    return String(Array.isArray(found) ? found[0] : found);
  };
  return {
    ...(text && { prompt: (row: Row) => String(text(row)) }),
    ...(target && { target: targetText }),
  };
}

function rowsOf(samples: unknown): Row[] {
  const isRow = (sample: unknown) =>
    typeof sample === "object" && sample !== null && !Array.isArray(sample);
  if (Array.isArray(samples) && samples.every(isRow)) return samples;
  if (samples instanceof NamedFunction) {
    throw new DataError(
      `expected a list for fewshot_config.samples, got !function ${samples.name}: Python code is not run`,
    );
  }
  throw wrongValue("fewshot_config.samples", "a list of rows", samples);
}

function fewShotConfig({ fewshot_config: config }: YamlSettings): YamlSettings {
  if (config === undefined || config === null) return {};
  if (typeof config === "object" && !Array.isArray(config)) return config as YamlSettings;
  throw wrongValue("fewshot_config", "settings by name", config);
}

/** The metrics of `metric_list`, each of which must be supported. */
export function checkedMetrics<T extends string>(
  { metric_list: list }: YamlSettings,
  supported: readonly T[],
): T[] {
  if (list === undefined || list === null) return [...supported];
  if (!Array.isArray(list)) throw wrongValue("metric_list", "a list of metrics", list);
  return list.map((entry) => {
    const metric = (entry as { metric?: unknown } | null)?.metric;
    if (supported.includes(metric as T)) return metric as T;
    throw wrongValue("metric_list", supported.join(" or "), metric ?? entry);
  });
}

/** A text, or undefined for a setting that is missing or null. */
export function optionalText(settings: YamlSettings, key: string): string | undefined {
  const value = settings[key];
  if (value === undefined || value === null) return undefined;
  if (typeof value === "string") return value;
  throw wrongValue(key, "a text", value);
}
