import type { ServeResult, Spread } from "./serve.js";

/** Formats the result of `bench serve` as a table for a terminal. */
export function formatServe({ device, model, run, rows }: ServeResult): string {
  const lines = [
    `${device.name} (${device.id}), ${model.name}, ${run.precision}: ${run.requests} requests at random times, ` +
      `prompts of ${run.promptTokens} tokens, answers of ${run.tokens}; p50 / p99`,
    "",
    "requests/s   tokens/s   first token           between tokens        whole answer          unanswered",
  ];
  for (const row of rows) {
    const cells = [row.firstMs, row.betweenMs, row.wholeMs].map((spread) =>
      text(spread).padEnd(22),
    );
    lines.push(
      `${String(row.rate).padStart(10)}${row.tokensPerSecond.toFixed(0).padStart(11)}   ${cells.join("")}${row.failures.length}`,
    );
    if (row.failures[0] !== undefined) lines.push(`  ${row.failures[0]}`);
  }
  return `${lines.join("\n")}\n`;
}

const text = ({ p50, p99 }: Spread): string => `${p50.toFixed(1)} / ${p99.toFixed(1)} ms`;
