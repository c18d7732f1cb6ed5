import type { DecodeResult } from "./decode.js";

/** Formats the result of `bench decode` as a table for a terminal. */
export function formatDecode({
  device,
  model,
  run,
  copyBytesPerSecond,
  rows,
  peer,
}: DecodeResult): string {
  const lines = [
    `${device.name} (${device.id}), ${model.name}, ${run.precision}: prompts of ${run.promptTokens} tokens, ` +
      `${run.tokens} written, median of ${run.runs} runs`,
    `limit: weights and cache read at the rate of a copy, ${(copyBytesPerSecond / 1e9).toFixed(0)} GB/s`,
    "",
    "sequences   tokens/s   of the limit   between tokens, median / p99   first token",
  ];
  for (const { batch, tokensPerSecond, share, betweenMs, firstMs } of rows) {
    const between = `${betweenMs.median.toFixed(2)} / ${betweenMs.p99.toFixed(2)} ms`;
    const [percent, first] = [`${(100 * share).toFixed(0)}%`, `${firstMs.toFixed(0)} ms`];
    lines.push(
      `${String(batch).padStart(9)}${tokensPerSecond.toFixed(0).padStart(11)}` +
        `${percent.padStart(15)}${between.padStart(31)}${first.padStart(14)}`,
    );
  }
  if (peer) {
    lines.push("", `${[peer.program, peer.version ?? ""].join(" ").trim()} beside it:`);
    for (const { batch, tokensPerSecond: theirs } of peer.rows) {
      const ours = rows.find((row) => row.batch === batch)?.tokensPerSecond ?? 0;
      lines.push(
        `${String(batch).padStart(9)}${theirs.toFixed(0).padStart(11)}   ` +
          `LlamaForge makes ${(ours / theirs).toFixed(2)} times as many`,
      );
    }
  }
  return `${lines.join("\n")}\n`;
}
