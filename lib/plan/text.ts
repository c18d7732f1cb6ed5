import { isDeepStrictEqual } from "node:util";
import type { LoadedConfig, RunConfig } from "../config/index.js";
import { describePrecision } from "../config/precision.js";
import { loraParameterCount } from "../model/lora-config.js";
import { presets } from "../model/presets.js";
import { alignRows, alignTable, formatBytes, formatDuration, formatHours } from "./format.js";
import { publishedHoursPer300B, type RunPlan } from "./plan.js";
import type { DataRepeats } from "./repeats.js";
import { formatScaling } from "./scaling-text.js";

/** Formats a plan as tables for a terminal. */
export function formatPlan(
  asked: LoadedConfig,
  plan: RunPlan & { data?: DataRepeats[] | string },
): string {
  const config: RunConfig = { ...asked, precision: plan.precision };
  const { parameters, memory, flops } = plan;
  const count = (n: number) => n.toLocaleString("en-US");
  // A small model has too few for a number of GFLOP.
  const gigaflops = (n: number) =>
    flops.causal < 1e8 ? `${(n / 1e6).toFixed(3)} MFLOP` : `${(n / 1e9).toFixed(3)} GFLOP`;
  const sections: [string, [string, string][]][] = [
    [
      "Parameters",
      [
        ["embedding", count(parameters.embedding)],
        ["attention", count(parameters.attention)],
        ["feed-forward", count(parameters.feedForward)],
        ["norms", count(parameters.norms)],
        ["head", parameters.head === 0 ? "tied to the embedding" : count(parameters.head)],
        ["all", count(parameters.total)],
        ...(config.lora
          ? ([["trained, in adapters", count(loraParameterCount(config.lora, config.model))]] as [
              string,
              string,
            ][])
          : []),
      ],
    ],
    [
      `Memory on one device, estimated (${describePrecision(asked.precision, config)}, micro-batch ${config.batch.microBatch} x ` +
        `${config.data.sequenceLength}, recompute ${config.recompute})`,
      [
        ["weights", formatBytes(memory.weights)],
        ...(memory.reference > 0
          ? ([["frozen reference", formatBytes(memory.reference)]] as [string, string][])
          : []),
        ["fp32 master weights", formatBytes(memory.masterWeights)],
        ["gradients", formatBytes(memory.gradients)],
        [
          config.optimizer.type === "muon" ? "Muon's and AdamW's moments" : "AdamW's moments",
          formatBytes(memory.moments),
        ],
        ...(memory.wholeGroups > 0
          ? ([["two groups of layers, whole", formatBytes(memory.wholeGroups)]] as [
              string,
              string,
            ][])
          : []),
        ...(memory.inTransit > 0
          ? ([["gradients on their way", formatBytes(memory.inTransit)]] as [string, string][])
          : []),
        ["activations", formatBytes(memory.activations)],
        largestWork(memory),
        ["all", formatBytes(memory.total)],
      ],
    ],
    [
      "Training FLOPs per token",
      [
        ["causal (what is needed)", gigaflops(flops.causal)],
        ...(flops.reference > 0
          ? ([["  of these by the frozen reference", gigaflops(flops.reference)]] as [
              string,
              string,
            ][])
          : []),
        ["full attention (TinyLlama's convention)", gigaflops(flops.fullAttention)],
      ],
    ],
    [
      "Work",
      [
        ["steps", count(config.steps)],
        ["tokens per step", count(plan.tokensPerStep)],
        [
          "tokens",
          `${count(plan.tokens)} (${(plan.tokens / parameters.total).toFixed(1)} per parameter)`,
        ],
        ["FLOPs, causal", `${(plan.tokens * flops.causal).toExponential(2)}`],
        ...muonRows(plan),
      ],
    ],
  ];
  const text = sections.map(([title, rows]) => `${title}\n${alignRows(rows)}`);
  if (plan.data !== undefined) text.push(`Data\n${dataTable(plan.data)}`);
  text.push(plan.scaling ? formatScaling(config, plan.scaling) : `Time\n${estimateTable(plan)}`);
  if (isDeepStrictEqual(config.model, presets["tinyllama-1.1b"])) {
    const rows = publishedHoursPer300B.map(({ model, hours }): [string, string] => [
      model,
      count(hours),
    ]);
    text.push(`A100-hours per 300 billion tokens, as published\n${alignRows(rows)}`);
  }
  return `${text.join("\n\n")}\n`;
}

/** FLOPs that Muon's iteration adds to a step's products. */
function muonRows({ optimizerFlops, tokensPerStep, flops }: RunPlan): [string, string][] {
  if (optimizerFlops === 0) return [];
  const share = (100 * optimizerFlops) / (tokensPerStep * flops.causal);
  const teraflops = (optimizerFlops / 1e12).toFixed(3);
  return [["Muon's FLOPs per step", `${teraflops} TFLOP, ${share.toFixed(1)}% of the step's`]];
}

/** The row for the larger of `workingSet` and `lossHead`; the two are never in memory together. */
function largestWork({ workingSet, lossHead }: RunPlan["memory"]): [string, string] {
  return workingSet > lossHead
    ? ["one block's gradients", formatBytes(workingSet)]
    : ["the loss: logits chunk, head's gradient", formatBytes(lossHead)];
}

function dataTable(data: DataRepeats[] | string): string {
  if (typeof data === "string") return `  not known: ${data}`;
  const rows = data.map(({ folder, tokens, epochs }): [string, string] => [
    folder,
    `${tokens.toLocaleString("en-US")} tokens, read ${epochs.toFixed(2)} times`,
  ]);
  return alignRows(rows);
}

function estimateTable(plan: RunPlan): string {
  if (plan.estimates.length === 0) {
    return "  not known: give --tokens-per-second, as a short run shows it, or --tflops";
  }
  const header = ["", "tokens/s", "time", "device-hours", "hours per 300B tokens"];
  const whole = (n: number) => Math.round(n).toLocaleString("en-US");
  const rows = plan.estimates.map((estimate) => [
    estimate.label,
    whole(estimate.tokensPerSecond),
    formatDuration(estimate.seconds),
    formatHours(estimate.deviceHours),
    whole(estimate.hoursPer300B),
  ]);
  return alignTable([header, ...rows]);
}
