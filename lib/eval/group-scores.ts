import type { TaskScores } from "./results.js";
import { type GroupMember, groupError, groupMean } from "./statistics.js";
import type { TaskGroup } from "./task.js";

/** The groups, each after the groups among its members. */
export function bottomUp(groups: readonly TaskGroup[]): TaskGroup[] {
  const byName = new Map(groups.map((group) => [group.name, group]));
  const ordered = new Set<TaskGroup>();
  const visit = (group: TaskGroup): void => {
    for (const name of group.members) {
      const inner = byName.get(name);
      if (inner && !ordered.has(inner)) visit(inner);
    }
    ordered.add(group);
  };
  for (const group of groups) visit(group);
  return [...ordered];
}

/** Names of all tasks of a group, those of its groups included, each once. */
export function tasksOfGroup(group: TaskGroup, groups: readonly TaskGroup[]): string[] {
  const names = group.members.flatMap((name) => {
    const inner = groups.find((one) => one.name === name);
    return inner ? tasksOfGroup(inner, groups) : [name];
  });
  return [...new Set(names)];
}

/** The means over all tasks of a group, for each filter that a metric has. */
export function groupScores(
  group: TaskGroup,
  groups: readonly TaskGroup[],
  results: Readonly<Record<string, TaskScores>>,
): TaskScores {
  const { name, alias = name, mean } = group;
  if (!mean) return { name, alias };
  const tasks = tasksOfGroup(group, groups).flatMap((task) => results[task] ?? []);
  const scores: TaskScores = {
    name,
    alias,
    sample_len: tasks.reduce((sum, task) => sum + sizeOf(task), 0),
  };
  const add = (key: string, members: readonly GroupMember[]): void => {
    scores[key] = groupMean(members, mean.weighted);
    scores[errorKey(key)] = groupError(members, mean.weighted) ?? "N/A";
  };
  const keysOf = (task: TaskScores, metric: string) =>
    Object.keys(task).filter((key) => key.startsWith(`${metric},`));
  if (mean.as !== undefined) {
    const members = tasks.flatMap((task) => {
      const [key] = mean.metrics.flatMap((metric) => keysOf(task, metric));
      return key === undefined ? [] : memberOf(task, key);
    });
    if (members.length > 0) add(`${mean.as},none`, members);
    return scores;
  }
  for (const metric of mean.metrics) {
    const keys = new Set(tasks.flatMap((task) => keysOf(task, metric)));
    for (const key of [...keys].sort())
      add(
        key,
        tasks.flatMap((task) => memberOf(task, key)),
      );
  }
  return scores;
}

/** A task's score as a member of a group; none if the task lacks it. */
function memberOf(task: TaskScores, key: string): GroupMember[] {
  const value = task[key];
  const error = task[errorKey(key)];
  if (typeof value !== "number") return [];
  return [{ value, error: typeof error === "number" ? error : null, size: sizeOf(task) }];
}

function sizeOf({ sample_len = 0 }: TaskScores): number {
  return sample_len;
}

/** `acc_stderr,none` of `acc,none`. */
function errorKey(key: string): string {
  return key.replace(",", "_stderr,");
}
