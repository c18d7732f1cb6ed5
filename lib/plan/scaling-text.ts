import type { RunConfig } from "../config/index.js";
import {
  alignRows,
  alignTable,
  formatBytes,
  formatDuration,
  formatHours,
  formatSeconds,
} from "./format.js";
import type { ScalingPlan, StrategyPlan } from "./scaling.js";

/** Formats a scaling plan as tables for a terminal. */
export function formatScaling(config: RunConfig, plan: ScalingPlan): string {
  const { gpu, gpus, nodes, chosen, rateSource } = plan;
  const whole = (n: number) => Math.round(n).toLocaleString("en-US");
  const percent = (share: number) => `${(100 * share).toFixed(1)}%`;
  const bandwidth = (bytes: number) => `${(bytes / 1e9).toPrecision(3)} GB/s`;
  const perNode = gpus / nodes;
  const links = [
    ...(perNode > 1 ? [`${bandwidth(plan.nodeBandwidth)} between GPUs of a node`] : []),
    ...(nodes > 1 ? [`${bandwidth(plan.networkBandwidth)} between nodes`] : []),
  ];
  const machine =
    gpus === 1
      ? `On one ${gpu.name}`
      : `On ${gpus} x ${gpu.name}, ${nodes} ${nodes === 1 ? "node" : "nodes"} of ${perNode}, ${chosen.parallel}`;
  const { accumulation } = config.batch;
  const step: [string, string][] = [
    ["speed of one GPU", rateSource],
    ...(links.length > 0 ? ([["links", links.join(", ")]] as [string, string][]) : []),
  ];
  const { exposedSeconds, slowedSeconds } = chosen;
  const optimizer = chosen.seconds - plan.passSeconds - exposedSeconds - slowedSeconds;
  const time: [string, string][] = [
    ["step", formatSeconds(chosen.seconds)],
    [`  forward and backward, ${accumulation} x`, formatSeconds(plan.passSeconds)],
    ["  optimizer", formatSeconds(optimizer)],
    ["  waiting for other GPUs", formatSeconds(exposedSeconds)],
    ...(slowedSeconds > 0
      ? ([["  slowed by other GPUs", formatSeconds(slowedSeconds)]] as [string, string][])
      : []),
    [
      "tokens/s",
      `${whole(chosen.tokensPerSecond)} (${whole(chosen.tokensPerSecond / gpus)} a GPU)`,
    ],
    ["whole run", formatDuration(plan.seconds)],
    ["GPU-hours", formatHours(plan.gpuHours)],
    ["GPU-hours for 300 billion tokens", whole(plan.gpuHoursPer300B)],
  ];
  const facts = step.map(([name, value]) => `  ${name}: ${value}`).join("\n");
  const text = [`${machine}\n${facts}\n${alignRows(time)}`];
  if (gpus > 1) {
    const header = ["", "memory", "sent by a GPU", "collectives", "exposed", "step", "efficiency"];
    const row = (each: StrategyPlan) => [
      `${each.parallel}${each.fits ? "" : " (does not fit)"}`,
      formatBytes(each.memory.total),
      formatBytes(each.sentBytes),
      formatSeconds(each.communicationSeconds),
      formatSeconds(each.exposedSeconds),
      formatSeconds(each.seconds),
      percent(each.efficiency),
    ];
    text.push(`Each step by strategy\n${alignTable([header, ...plan.strategies.map(row)])}`);
  }
  return text.join("\n\n");
}
