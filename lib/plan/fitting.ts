/** Suggests changes to a configuration that needs more memory than a GPU has. */

import type { RunConfig } from "../config/index.js";
import { ConfigError } from "../core/errors.js";
import type { StrategyName } from "../dist/strategy.js";
import { formatBytes } from "./format.js";
import type { Gpu } from "./gpus.js";

/**
 * An error that says how much memory is missing and which changes would fit, the smallest first.
 */
export function doesNotFit(options: {
  config: RunConfig;
  gpu: Gpu;
  /** Bytes of the GPU's memory that training may use. */
  usable: number;
  /** Other strategies to choose from. */
  others: readonly StrategyName[];
  /** Bytes that a configuration needs. */
  bytesOf: (changed: RunConfig) => number;
}): ConfigError {
  const { config, gpu, usable, others, bytesOf } = options;
  const fitting = changesOf(config, others)
    .map((changes) =>
      changes
        .map(({ what, changed }) => ({ what, bytes: bytesOf(changed) }))
        .filter(({ bytes }) => bytes <= usable)
        .map(({ what, bytes }) => `${what} (${formatBytes(bytes)})`),
    )
    .find((found) => found.length > 0);
  const taken = bytesOf(config);
  const message =
    `${config.parallel} takes ${formatBytes(taken)} on each GPU, ${formatBytes(taken - usable)} more than the ` +
    `${formatBytes(usable)} that ${gpu.name} has for it; ` +
    (fitting ? `what fits: ${fitting.join(", ")}` : "nothing else fits either");
  return new ConfigError("the plan", [{ path: "parallel", message }]);
}

interface Change {
  what: string;
  changed: RunConfig;
}

/**
 * Candidate changes in groups: a single option; strategy and recomputation together; then the
 * micro-batch halved repeatedly, each time alone and with all of these.
 */
function changesOf(config: RunConfig, strategies: readonly StrategyName[]): Change[][] {
  const options = ["none", "ffn", "block"] as const;
  const recomputes = options.slice(options.indexOf(config.recompute) + 1);
  const others = strategies.filter((parallel) => parallel !== config.parallel);
  const change = (what: Partial<Pick<RunConfig, "parallel" | "recompute">>): Change => ({
    what: Object.entries(what)
      .map(([path, value]) => `${path}=${value}`)
      .join(" "),
    changed: { ...config, ...what },
  });
  const single = [
    ...others.map((parallel) => change({ parallel })),
    ...recomputes.map((recompute) => change({ recompute })),
  ];
  const both = others.flatMap((parallel) =>
    recomputes.map((recompute) => change({ parallel, recompute })),
  );
  const smaller: Change[][] = [];
  for (let each = config.batch.microBatch >> 1; each >= 1; each >>= 1) {
    const batch = { ...config.batch, microBatch: each };
    const unchanged = { what: "", changed: config };
    smaller.push(
      [unchanged, ...single, ...both].map(({ what, changed }) => ({
        what: `batch.microBatch=${each} ${what}`.trim(),
        changed: { ...changed, batch },
      })),
    );
  }
  return [single, both, ...smaller];
}
