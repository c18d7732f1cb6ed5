import { argumentError } from "../core/check-values.js";
import { ArgumentError } from "../core/errors.js";
import { nearest } from "../core/option-tree.js";
import { checkTask, type TaskSelection } from "./check-task.js";
import type { Task, TaskGroup } from "./task.js";
import { arcChallenge, arcEasy } from "./tasks/arc.js";
import { bbhDirectTasks, bbhGroups, bbhThoughtTasks } from "./tasks/bbh.js";
import { boolq } from "./tasks/boolq.js";
import { drop, dropFewShot } from "./tasks/drop.js";
import { hellaswag } from "./tasks/hellaswag.js";
import { humaneval, humaneval64 } from "./tasks/humaneval.js";
import { lambadaOpenai } from "./tasks/lambada.js";
import { mmluGroups, mmluTasks } from "./tasks/mmlu.js";
import { openbookqa } from "./tasks/openbookqa.js";
import { piqa } from "./tasks/piqa.js";
import { textFileTask } from "./tasks/text-file.js";
import { wikitext } from "./tasks/wikitext.js";
import { winogrande } from "./tasks/winogrande.js";

// To add a task, write its file in tasks/ and list it here.

/** The tasks whose average the papers of small models report, in their order. */
const commonsense: readonly Task[] = [
  hellaswag,
  openbookqa,
  winogrande,
  arcChallenge,
  arcEasy,
  boolq,
  piqa,
];

/** Tasks by name. */
export const publishedTasks: ReadonlyMap<string, Task> = byName([
  ...commonsense,
  ...mmluTasks,
  ...bbhThoughtTasks,
  ...bbhDirectTasks,
  drop,
  dropFewShot,
  humaneval,
  humaneval64,
  lambadaOpenai,
  wikitext,
]);

/** Groups by name. `tinyllama` has both tables of TinyLlama's paper. */
export const taskGroups: ReadonlyMap<string, TaskGroup> = byName([
  {
    name: "commonsense",
    members: commonsense.map(({ name }) => name),
    mean: { metrics: ["acc_norm", "acc"], weighted: false, as: "average" },
  },
  ...mmluGroups,
  ...bbhGroups,
  { name: "problem-solving", members: ["mmlu", "bbh_fewshot", "humaneval", "drop_fewshot"] },
  { name: "tinyllama", members: ["commonsense", "problem-solving"] },
]);

/**
 * The tasks and groups of a list, each once and in its order.
 * @param wanted names of tasks and groups, `text:PATH` for a file of one's own, paths of YAML files
 *   in lm-evaluation-harness' format, and tasks of the caller's own
 * @throws ArgumentError for an unknown name, with the nearest known one, and for two different
 *   tasks of one name
 * @throws ConfigError, DataError for a YAML file
 */
export async function selectTasks(
  wanted: string | Task | readonly (string | Task)[],
): Promise<TaskSelection> {
  const list = Array.isArray(wanted) ? wanted : [wanted as string | Task];
  if (list.length === 0) throw argumentError("evaluate", "at least one task", "tasks", list);
  const tasks = new Map<string, Task>();
  const groups = new Map<string, TaskGroup>();
  const add = (task: Task): void => {
    expectNames(task);
    const known = tasks.get(task.name);
    if (known !== undefined && known !== task) {
      throw new ArgumentError(
        `[evaluate] expected tasks with different names, got two named ${task.name}`,
      );
    }
    tasks.set(task.name, task);
  };
  const addNamed = async (name: string): Promise<void> => {
    const group = taskGroups.get(name);
    if (group === undefined) {
      add(await taskNamed(name));
      return;
    }
    groups.set(name, group);
    for (const member of group.members) await addNamed(member);
  };
  for (const [index, entry] of list.entries()) {
    if (typeof entry === "string") await addNamed(entry);
    else {
      checkTask("evaluate", `tasks[${index}]`, entry);
      add(entry);
    }
  }
  return { tasks: [...tasks.values()], groups: [...groups.values()] };
}

/** Names are keys of the results. @throws ArgumentError for one that no object takes as a key */
function expectNames(task: Task): void {
  const filters = task.kind === "generation" ? (task.filters ?? []) : [];
  for (const name of [task.name, ...task.metrics, ...filters.map((filter) => filter.name)]) {
    if (name !== "__proto__") continue;
    throw new ArgumentError(
      `[evaluate] ${task.name}: expected another name than __proto__ for a task, metric or filter`,
    );
  }
}

async function taskNamed(name: string): Promise<Task> {
  const task = publishedTasks.get(name);
  if (task !== undefined) return task;
  if (name.startsWith("text:") && name.length > "text:".length) {
    return textFileTask(name.slice("text:".length));
  }
  if (/\.ya?ml$/i.test(name)) {
    // Imported where it is needed, because it brings the template engine with it.
    const { yamlTask } = await import("./yaml-task.js");
    const own = await yamlTask(name);
    checkTask("evaluate", name, own);
    return own;
  }
  const known = [...publishedTasks.keys(), ...taskGroups.keys()];
  const near = nearest(name, known);
  const groups = [...taskGroups.keys()].join(", ");
  throw new ArgumentError(
    `[evaluate] expected a task or group, got ${JSON.stringify(name)}` +
      (near === undefined ? "." : `; did you mean ${near}?`) +
      ` Groups are ${groups}; text:PATH measures a file, and PATH.yaml is a task of one's own`,
  );
}

function byName<T extends { name: string }>(entries: readonly T[]): ReadonlyMap<string, T> {
  return new Map(entries.map((entry) => [entry.name, entry]));
}
