import type { ServeResult, Spread, StreamsRow } from "./serve.js";

/** Formats the result of `bench serve` as a table for a terminal. */
export function formatServe({ device, model, run, rows, streams }: ServeResult): string {
  const lines = [
    `${device.name} (${device.id}), ${model.name}, ${run.precision}: ` +
      `prompts of ${run.promptTokens} tokens, answers of ${run.tokens}`,
    "",
    `${run.requests} requests at random times; p50 / p99`,
    "requests/s   tokens/s   first token           between tokens        whole answer          unanswered",
  ];
  for (const row of rows) {
    const cells = [row.firstMs, row.betweenMs, row.wholeMs].map((spread) =>
      text(spread).padEnd(22),
    );
    const rate = String(row.rate).padStart(10);
    const speed = row.tokensPerSecond.toFixed(0).padStart(11);
    lines.push(`${rate}${speed}   ${cells.join("")}${row.failures.length}`);
    if (row.failures[0] !== undefined) lines.push(`  ${row.failures[0]}`);
  }
  if (streams.length > 0) {
    lines.push(
      "",
      "streams   engine alone   HTTP           ratio   events/token   JavaScript",
      ...streams.map(streamsLine),
    );
  }
  return `${lines.join("\n")}\n`;
}

const text = ({ p50, p99 }: Spread): string => `${p50.toFixed(1)} / ${p99.toFixed(1)} ms`;

function streamsLine(row: StreamsRow): string {
  const rate = (perSecond: number) => `${perSecond.toFixed(0)} tok/s`.padEnd(15);
  return (
    `${String(row.streams).padStart(7)}   ${rate(row.engineTokensPerSecond)}` +
    `${rate(row.httpTokensPerSecond)}${`${(100 * row.ratio).toFixed(0)}%`.padEnd(8)}` +
    `${row.eventsPerToken.toFixed(2).padEnd(15)}${row.javascriptUsPerToken.toFixed(1)} us/token`
  );
}
