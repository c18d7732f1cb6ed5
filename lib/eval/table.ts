import { boundedList } from "../core/bounded-list.js";
import type { Comparison } from "./published.js";
import { publishedTasks, taskGroups } from "./registry.js";
import type { CutPrompts, EvaluationResults } from "./results.js";

/** The scores of an evaluation as a table for a terminal, with their standard errors. */
export function scoreTable(evaluation: EvaluationResults): string {
  const { results, versions, "n-shot": shots, "n-samples": counts } = evaluation;
  const rows = [["task", "version", "shots", "questions", "metric", "score", "std. error"]];
  for (const [name, { depth }] of inTreeOrder(evaluation)) {
    const scores = results[name];
    if (scores === undefined) continue;
    const questions = counts[name]?.effective ?? scores.sample_len;
    let first = true;
    for (const [key, value] of Object.entries(scores)) {
      const [metric = "", filter] = key.split(",");
      if (filter === undefined || metric.endsWith("_stderr") || typeof value !== "number") continue;
      const error = scores[`${metric}_stderr,${filter}`];
      const label = filter === "none" ? metric : `${metric}, ${filter}`;
      const head = first
        ? [
            "  ".repeat(depth) + scores.alias,
            String(versions[name] ?? ""),
            String(shots[name] ?? ""),
            questions?.toLocaleString("en-US") ?? "",
          ]
        : ["", "", "", ""];
      first = false;
      rows.push([...head, label, digits(value), typeof error === "number" ? digits(error) : ""]);
    }
    if (first) rows.push(["  ".repeat(depth) + scores.alias, "", "", "", "", "", ""]);
  }
  return align(rows, [false, true, true, true, false, true, true]);
}

/** All tasks and groups with their members, for a terminal. */
export function taskList(): string {
  const groups = [...taskGroups.values()].map(({ name, members }) => [name, members.join(", ")]);
  const grouped = new Set([...taskGroups.values()].flatMap(({ members }) => members));
  const others = [...publishedTasks.keys()].filter((name) => !grouped.has(name));
  const rows = [
    ...groups,
    ...others.map((name) => [name, ""]),
    ["text:PATH", "a text file, or the column text of a JSON Lines or Parquet file"],
    ["PATH.yaml", "a task in the format of lm-evaluation-harness"],
  ];
  return align(rows, [false, false]);
}

/** A note under the table about prompts that the context could not hold; null if there were none. */
export function cutNote({ "cut-prompts": cut, config }: EvaluationResults): string | null {
  const tasks = Object.entries(cut);
  if (tasks.length === 0) return null;
  const count = (field: keyof CutPrompts) => tasks.reduce((sum, [, each]) => sum + each[field], 0);
  const text = (field: keyof CutPrompts) => count(field).toLocaleString("en-US");
  const were = count("prompts") === 1 ? "prompt was" : "prompts were";
  const list = tasks.map(([task, { prompts }]) => `${task} ${prompts.toLocaleString("en-US")}`);
  return (
    `${text("prompts")} ${were} longer than the context of ${String(config.max_length)} tokens, ` +
    `cut from the left by ${text("tokens")} tokens in all: ${boundedList(list, ", ")}`
  );
}

/**
 * A note under the table about tasks whose rows are not as many as the published ones: another
 * revision of the data, or a part of it. Null if there are none.
 */
export function rowsNote({ "n-samples": counts }: EvaluationResults): string | null {
  const list = Object.entries(counts).flatMap(([name, { original }]) => {
    const { publishedRows = original } = publishedTasks.get(name)?.data ?? {};
    const text = (count: number) => count.toLocaleString("en-US");
    return publishedRows === original
      ? []
      : [`${name} ${text(original)} instead of ${text(publishedRows)}`];
  });
  if (list.length === 0) return null;
  return `the rows are not those of the published scores: ${boundedList(list, ", ")}`;
}

/** Published scores beside an evaluation's, in percent. */
export function comparisonTable({ columns, rows }: Comparison): string {
  const lines = rows.map(({ model, scores, published }) => [
    model,
    ...scores.map((score) => (score === null ? "–" : score.toFixed(2))),
    published ? "published" : "measured",
  ]);
  const right = [false, ...columns.map(() => true), false];
  return align([["percent", ...columns, ""], ...lines], right);
}

function digits(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  return Math.abs(value) < 10_000 ? value.toFixed(4) : value.toExponential(4);
}

/** Groups with their members below them, then the tasks of no group. Each name stands once. */
function inTreeOrder({
  group_subtasks: groups,
  results,
}: EvaluationResults): Map<string, { depth: number }> {
  const inner = new Set(Object.values(groups).flat());
  const order = new Map<string, { depth: number }>();
  const visit = (name: string, depth: number): void => {
    if (order.has(name)) return;
    order.set(name, { depth });
    for (const member of groups[name] ?? []) visit(member, depth + 1);
  };
  for (const name of Object.keys(groups)) if (!inner.has(name)) visit(name, 0);
  for (const name of Object.keys(results)) visit(name, 0);
  return order;
}

/** Text columns, each as wide as its longest cell. */
function align(rows: readonly (readonly string[])[], right: readonly boolean[]): string {
  const widths = right.map((_, i) => Math.max(...rows.map((row) => [...(row[i] ?? "")].length)));
  const line = (row: readonly string[]) =>
    row
      .map((cell, i) => {
        const space = " ".repeat((widths[i] as number) - [...cell].length);
        return right[i] ? space + cell : cell + space;
      })
      .join("  ")
      .trimEnd();
  return rows.map(line).join("\n");
}
