import { stat } from "node:fs/promises";
import { join } from "node:path";
import { UsageError } from "../core/errors.js";
import { addWaits, noWaits, type WaitTotals } from "../train/device-waits.js";
import {
  type RunInfo,
  readMetrics,
  readRunInfo,
  runFiles,
  type Sample,
  type StepMetrics,
  type Validation,
} from "../train/metrics.js";
import { type TaskChart, taskCharts } from "./task-scores.js";

/** Everything that a run has recorded about itself. */
export interface RunRecord {
  info: RunInfo;
  steps: StepMetrics[];
}

/**
 * Reads the folder of a finished or running run.
 * @throws UsageError if it is not a run's folder, or no step has been recorded yet
 */
export async function readRun(folder: string): Promise<RunRecord> {
  const isFolder = await stat(folder).then(
    (entry) => entry.isDirectory(),
    () => false,
  );
  if (!isFolder) throw new UsageError(`${folder} is not a folder`);
  const info = await readRunInfo(folder);
  const steps = await readMetrics(join(folder, runFiles.metrics));
  if (steps.length === 0) throw new UsageError(`${folder}: no step has been recorded yet`);
  return { info, steps };
}

export interface RunSummary {
  /** Last step recorded. */
  step: number;
  tokens: number;
  /**
   * Mean loss of the last steps (at most 50, at most a tenth of the run), because one step alone is
   * noise.
   */
  finalLoss: number;
  validation: Validation | undefined;
  /** Time spent in steps. */
  trainingSeconds: number;
  tokensPerSecond: number;
  skipped: number;
  /** Share of the time in which the host waited for data. */
  dataWait: number;
  /**
   * Causes of device waits, summed over the steps that recorded them; null if none did. The last
   * save of a run is not included.
   */
  waits: { ms: WaitTotals; ofMs: number } | null;
}

/** Computes the key figures of a run. */
export function summarise({ steps }: RunRecord): RunSummary {
  const last = steps.at(-1)!;
  const tail = steps.slice(-Math.min(50, Math.ceil(steps.length / 10)));
  const finite = tail.map(({ loss }) => loss).filter(Number.isFinite);
  const sum = (values: number[]) => values.reduce((total, value) => total + value, 0);
  const trainingSeconds = sum(steps.map(({ stepMs }) => stepMs)) / 1000;
  // A resumed run's file may begin late, and only the tokens of recorded steps were trained in that
  // time.
  const tokens = sum(steps.map(({ tokensPerSecond, stepMs }) => (tokensPerSecond * stepMs) / 1000));
  return {
    step: last.step,
    tokens: last.tokens,
    finalLoss: sum(finite) / finite.length,
    validation: steps.findLast(({ validation }) => validation !== undefined)?.validation,
    trainingSeconds,
    tokensPerSecond: tokens / trainingSeconds,
    skipped: steps.filter(({ skipped }) => skipped !== undefined).length,
    waits: waitsOf(steps),
    dataWait: sum(steps.map(({ dataWaitMs }) => dataWaitMs)) / 1000 / trainingSeconds,
  };
}

function waitsOf(steps: readonly StepMetrics[]): RunSummary["waits"] {
  const ms = noWaits();
  let ofMs = 0;
  for (const { stepMs, deviceWaitMs, pauseMs = {} } of steps) {
    if (deviceWaitMs === undefined) continue;
    addWaits(ms, { ...deviceWaitMs, ...pauseMs });
    ofMs += Object.values(pauseMs).reduce((sum, pause) => sum + pause, stepMs);
  }
  return ofMs > 0 ? { ms, ofMs } : null;
}

/** Columns of the charts. */
export interface ChartData {
  step: number[];
  tokens: number[];
  loss: (number | null)[];
  validation: (number | null)[];
  lr: (number | null)[];
  gradNorm: (number | null)[];
  tokensPerSecond: (number | null)[];
  deviceBytes: (number | null)[];
  rssBytes: (number | null)[];
  skipped: { step: number; tokens: number; reason: string }[];
  /** Scores on tasks, a chart each. */
  tasks: TaskChart[];
}

const meanColumns = ["loss", "lr", "gradNorm", "tokensPerSecond"] as const;
const peakColumns = ["deviceBytes", "rssBytes"] as const;

/**
 * Reduces a run to at most `maxPoints` points of equally many steps, so that a run of a million
 * steps is still a small page. Varying values become means, memory becomes its peak.
 */
export function chartData(steps: readonly StepMetrics[], maxPoints = 4000): ChartData {
  const stride = Math.ceil(steps.length / maxPoints);
  const data: ChartData = {
    step: [],
    tokens: [],
    loss: [],
    validation: [],
    lr: [],
    gradNorm: [],
    tokensPerSecond: [],
    deviceBytes: [],
    rssBytes: [],
    skipped: [],
    tasks: [],
  };
  const groups: StepMetrics[][] = [];
  for (let from = 0; from < steps.length; from += stride) {
    const group = steps.slice(from, from + stride);
    const last = group.at(-1)!;
    groups.push(group);
    data.step.push(last.step);
    data.tokens.push(last.tokens);
    const measured = group.findLast(({ validation }) => validation !== undefined);
    data.validation.push(finiteOrNull(measured?.validation?.loss));
    for (const column of meanColumns) data[column].push(mean(group.map((step) => step[column])));
    for (const column of peakColumns) {
      data[column].push(finiteOrNull(Math.max(...group.map((step) => step[column]))));
    }
  }
  for (const { step, tokens, skipped } of steps) {
    if (skipped === undefined) continue;
    data.skipped.push({ step, tokens, reason: skipped });
    if (data.skipped.length === maxPoints) break;
  }
  data.tasks = taskCharts(groups);
  return data;
}

function mean(values: readonly number[]): number | null {
  const finite = values.filter(Number.isFinite);
  return finiteOrNull(finite.reduce((sum, value) => sum + value, 0) / finite.length);
}

/** Rounds to six digits, which are more than a screen shows. */
function finiteOrNull(value: number | undefined): number | null {
  return value === undefined || !Number.isFinite(value) ? null : Number(value.toPrecision(6));
}

/** The steps at which sample text was written, newest first. */
export function samplesByStep(
  steps: readonly StepMetrics[],
): { step: number; samples: Sample[] }[] {
  return steps
    .filter(({ samples }) => samples !== undefined && samples.length > 0)
    .map(({ step, samples }) => ({ step, samples: samples! }))
    .reverse();
}
