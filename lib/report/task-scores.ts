import { describeTokens, isShare, publishedRows, publishedScore } from "../eval/published.js";
import type { StepMetrics, TaskScore } from "../train/metrics.js";

/** Scores of one task over a run, as its chart shows them: shares in percent. */
export interface TaskChart {
  task: string;
  /** Metric, and its unit. */
  label: string;
  /** One entry for each point of the charts; null where the task was not scored. */
  values: (number | null)[];
  /** Published scores of known models: horizontal lines. */
  published: { model: string; value: number }[];
}

/** Most charts of a report. A table has all tasks. */
const maxCharts = 16;

/** Published rows whose lines a chart shows; more would cover each other. */
const shownRows = publishedRows.filter(
  ({ model, billionTokens }) =>
    model.startsWith("Pythia") || billionTokens === 103 || billionTokens === 3000,
);

/** A score as charts and tables show it. */
export function shownScore(score: TaskScore): number {
  return isShare(score) ? 100 * score.value : score.value;
}

/**
 * Charts of the tasks that a run was scored on.
 * @param groups the steps of each point of the charts
 */
export function taskCharts(groups: readonly (readonly StepMetrics[])[]): TaskChart[] {
  const charts = new Map<string, TaskChart>();
  for (const [index, group] of groups.entries()) {
    const scored = group.findLast(({ scores }) => scores !== undefined)?.scores ?? [];
    for (const score of scored) {
      const known = charts.get(score.task);
      if (known === undefined && charts.size === maxCharts) continue;
      const chart = known ?? newChart(score, groups.length);
      charts.set(score.task, chart);
      chart.values[index] = Number.isFinite(score.value) ? round(shownScore(score)) : null;
    }
  }
  return [...charts.values()];
}

function newChart(score: TaskScore, points: number): TaskChart {
  const { task, metric } = score;
  return {
    task,
    label: isShare(score) ? `${metric}, percent` : metric.replaceAll("_", " "),
    values: Array.from({ length: points }, () => null),
    published: shownRows.flatMap((row) => {
      const value = publishedScore(row, task);
      const model = `${row.model}, ${describeTokens(row.billionTokens)}`;
      return value === undefined ? [] : [{ model, value: round(value) }];
    }),
  };
}

function round(value: number): number {
  return Number(value.toPrecision(6));
}
