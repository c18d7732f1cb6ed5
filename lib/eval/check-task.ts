import {
  argumentError,
  checkArray,
  checkChoice,
  checkFunction,
  checkInteger,
  checkObject,
  checkString,
} from "../core/check-values.js";
import type { Task, TaskGroup } from "./task.js";

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
    checkArray(op, `${name}.until`, task.until, "an array of texts");
    checkInteger(op, `${name}.maxTokens`, task.maxTokens, { min: 1 });
  }
}

/** Tasks and groups that an evaluation asks, each once. */
export interface TaskSelection {
  tasks: readonly Task[];
  groups: readonly TaskGroup[];
}
