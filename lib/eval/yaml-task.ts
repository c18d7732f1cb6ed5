import { DataError, LlamaForgeError } from "../core/errors.js";
import type {
  ChoiceTask,
  ContinuationTask,
  FewShot,
  GenerationTask,
  Row,
  Task,
  TaskData,
  TextMetric,
  TextTask,
} from "./task.js";
import {
  choiceField,
  descriptionField,
  type FieldOf,
  targetField,
  textField,
  wrongValue,
} from "./yaml-fields.js";
import { NamedFunction, readTaskYaml, type YamlSettings } from "./yaml-file.js";
import { publishedFunction } from "./yaml-functions.js";
import { generationFields } from "./yaml-generation.js";
import {
  checkedMetrics,
  checkKeys,
  dataOf,
  fewShotOf,
  optionalText,
  type Splits,
} from "./yaml-settings.js";

/**
 * Reads a task in lm-evaluation-harness' YAML format: the kinds multiple_choice, loglikelihood,
 * loglikelihood_rolling and generate_until, with Jinja templates and the functions of published
 * tasks. Python code is not run.
 * @throws DataError naming the file and the setting that is wrong or not supported
 * @throws ConfigError for a file that is no YAML
 */
export async function yamlTask(path: string): Promise<Task> {
  const settings = await readTaskYaml(path);
  try {
    checkKeys(settings);
    return taskOf(settings);
  } catch (cause) {
    if (!(cause instanceof LlamaForgeError) || cause.message.startsWith("[")) throw cause;
    throw new DataError(`[evaluate] ${path}: ${cause.message}`, { cause });
  }
}

/** Fields that tasks of all kinds have. */
interface CommonFields {
  name: string;
  version: number;
  data: TaskData;
  fewShot: FewShot;
  targetDelimiter: string;
  description?: string | ((row: Row) => string);
  prepareRows?: (rows: Row[]) => Row[];
}

function taskOf(settings: YamlSettings): Task {
  const { output_type: type = "generate_until", doc_to_choice: choices } = settings;
  const { data, splits } = dataOf(settings);
  const { dataset } = data;
  const hasChoices = choices !== undefined && choices !== null;
  const text = textField("doc_to_text", settings.doc_to_text, dataset, hasChoices);
  const target = targetField("doc_to_target", settings.doc_to_target, dataset, hasChoices);
  const choice = hasChoices ? choiceField("doc_to_choice", choices, dataset) : null;
  const common = commonFields(settings, data, splits);
  switch (type) {
    case "multiple_choice":
      if (choice === null) throw wrongValue("doc_to_choice", "the choices", choices);
      return choiceTask(settings, common, text, target, choice);
    case "loglikelihood":
      return continuationTask(settings, common, text, target);
    case "loglikelihood_rolling":
      return textTask(settings, common, target);
    case "generate_until":
      return generationTask(settings, common, text, target, choice);
    default:
      throw wrongValue(
        "output_type",
        "multiple_choice, loglikelihood, loglikelihood_rolling or generate_until",
        type,
      );
  }
}

function commonFields(settings: YamlSettings, data: TaskData, splits: Splits): CommonFields {
  const { task, process_docs: process, metadata } = settings;
  if (typeof task !== "string") throw wrongValue("task", "the task's name", task);
  const { version = 0 } = (metadata ?? {}) as { version?: unknown };
  const description = descriptionField(settings.description);
  return {
    name: task,
    version: typeof version === "number" ? version : 0,
    data,
    fewShot: fewShotOf(settings, splits, data.dataset),
    targetDelimiter: optionalText(settings, "target_delimiter") ?? " ",
    ...(description !== "" && { description }),
    ...(process instanceof NamedFunction && {
      prepareRows: publishedFunction<(rows: Row[]) => Row[]>(process, data.dataset, "process_docs"),
    }),
  };
}

type Text = FieldOf<string | number>;
type Target = FieldOf<string | number | readonly unknown[]>;

function choiceTask(
  settings: YamlSettings,
  common: CommonFields,
  text: Text,
  target: Target,
  choice: FieldOf<string[]>,
): ChoiceTask {
  return {
    kind: "choice",
    ...common,
    // An index instead of a text means that the choices are prompts, and the target follows them.
    prompt: (row) => {
      const found = text(row);
      return typeof found === "number" ? choice(row) : found;
    },
    choices: (row) => (typeof text(row) === "number" ? [String(target(row))] : choice(row)),
    answer: (row) => {
      const right = text(row);
      return typeof right === "number" ? right : indexOf(choice(row), target(row));
    },
    metrics: checkedMetrics(settings, ["acc", "acc_norm"]),
  };
}

function indexOf(choices: readonly string[], target: ReturnType<Target>): number {
  if (typeof target === "number") return target;
  const index = typeof target === "string" ? choices.indexOf(target) : -1;
  if (index >= 0) return index;
  throw wrongValue("doc_to_target", `an index or one of ${JSON.stringify(choices)}`, target);
}

function continuationTask(
  settings: YamlSettings,
  common: CommonFields,
  text: Text,
  target: Target,
): ContinuationTask {
  return {
    kind: "continuation",
    ...common,
    prompt: (row) => String(text(row)),
    continuation: (row) => String(target(row)),
    metrics: checkedMetrics(settings, ["perplexity", "acc"]),
  };
}

function textTask(settings: YamlSettings, common: CommonFields, target: Target): TextTask {
  const { process_results: process } = settings;
  const counted =
    process instanceof NamedFunction
      ? publishedFunction<(row: Row) => string>(process, common.data.dataset, "process_results")
      : null;
  const metrics: readonly TextMetric[] = ["word_perplexity", "byte_perplexity", "bits_per_byte"];
  return {
    kind: "text",
    ...common,
    text: (row) => String(target(row)),
    ...(counted && { counted }),
    metrics: checkedMetrics(settings, metrics),
  };
}

function generationTask(
  settings: YamlSettings,
  common: CommonFields,
  text: Text,
  target: Target,
  choice: FieldOf<string[]> | null,
): GenerationTask {
  /** All texts that count as right. */
  const references = (row: Row): string[] => {
    const found = target(row);
    if (typeof found !== "string" && typeof found !== "number") return found.map(String);
    if (choice === null || typeof found !== "number") return [String(found)];
    const right = choice(row)[found];
    if (right === undefined) throw wrongValue("doc_to_target", "the index of a choice", found);
    return [right];
  };
  return {
    kind: "generation",
    ...common,
    prompt: (row) => String(text(row)),
    target: (row) => references(row)[0] ?? "",
    ...generationFields(settings, references),
  };
}
