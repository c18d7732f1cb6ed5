import {
  argumentError,
  checkArray,
  checkChoice,
  checkFunction,
  checkInteger,
  checkNumber,
  checkObject,
  checkString,
} from "../core/check-values.js";
import type { GenerationTask, Task, TaskGroup } from "./task.js";

const kinds = ["choice", "continuation", "text", "generation"] as const;

/** Functions that a task of each kind has. */
const functionsOf = {
  choice: ["prompt", "choices", "answer"],
  continuation: ["prompt", "continuation"],
  text: ["text"],
  generation: ["prompt", "target", "score"],
} as const;

/** Metrics of each kind. A generation task has its own. */
const metricsOf = {
  choice: ["acc", "acc_norm"],
  continuation: ["perplexity", "acc"],
  text: ["word_perplexity", "byte_perplexity", "bits_per_byte", "token_perplexity"],
  generation: null,
} as const;

/** Checks a task of the caller's own. @throws ArgumentError naming the field that is wrong */
export function checkTask(op: string, name: string, value: unknown): asserts value is Task {
  checkObject(op, name, value, "a task, or the name of one");
  const task = value as Partial<Task> & Record<string, unknown>;
  checkString(op, `${name}.name`, task.name);
  if (task.name === "") throw argumentError(op, "a text that is not empty", `${name}.name`, "");
  checkChoice(op, `${name}.kind`, task.kind, kinds);
  checkInteger(op, `${name}.version`, task.version, { min: 0 });
  checkObject(op, `${name}.data`, task.data, "where the rows lie: { dataset, split, columns }");
  const { data } = task as Task;
  checkString(op, `${name}.data.dataset`, data.dataset);
  checkString(op, `${name}.data.split`, data.split);
  checkArray(op, `${name}.data.columns`, data.columns, "an array of column names");
  for (const method of functionsOf[(task as Task).kind]) {
    checkFunction(op, `${name}.${method}`, task[method]);
  }
  checkArray(op, `${name}.metrics`, task.metrics, "an array of metrics");
  const metrics = task.metrics as readonly unknown[];
  if (metrics.length === 0) throw argumentError(op, "at least one metric", `${name}.metrics`, []);
  const known = metricsOf[(task as Task).kind];
  for (const [index, metric] of metrics.entries()) {
    if (known) checkChoice(op, `${name}.metrics[${index}]`, metric, known);
    else checkString(op, `${name}.metrics[${index}]`, metric);
  }
  for (const [field, method] of [
    ["data.keep", data.keep],
    ["prepareRows", task.prepareRows],
  ] as const) {
    if (method !== undefined) checkFunction(op, `${name}.${field}`, method);
  }
  if (task.kind === "generation") {
    checkAnswers(op, name, task as GenerationTask);
  }
}

/** How a generation task's answers are written. */
function checkAnswers(op: string, name: string, task: GenerationTask): void {
  const { until, maxTokens, repeats = 1, temperature = 0, topP = 1, filters = [] } = task;
  checkArray(op, `${name}.until`, until, "an array of texts");
  for (const [index, text] of until.entries()) checkString(op, `${name}.until[${index}]`, text);
  checkInteger(op, `${name}.maxTokens`, maxTokens, { min: 1 });
  checkInteger(op, `${name}.repeats`, repeats, { min: 1 });
  checkNumber(op, `${name}.temperature`, temperature, { min: 0 });
  checkNumber(op, `${name}.topP`, topP, { min: 0, max: 1 });
  if (topP === 0) throw argumentError(op, "a number above 0", `${name}.topP`, topP);
  checkArray(op, `${name}.filters`, filters, "an array of filters");
  for (const [index, filter] of filters.entries()) {
    checkObject(op, `${name}.filters[${index}]`, filter, "{ name, apply }");
    checkString(op, `${name}.filters[${index}].name`, filter.name);
    checkFunction(op, `${name}.filters[${index}].apply`, filter.apply);
  }
}

/** Tasks and groups that an evaluation asks, each once. */
export interface TaskSelection {
  tasks: readonly Task[];
  groups: readonly TaskGroup[];
}
