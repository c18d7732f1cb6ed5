import { SingleBar } from "cli-progress";
import { type Command, Option } from "commander";
import type { PrepareOptions, PrepareResult } from "../data/prepare.js";
import { exitCodes, UsageError } from "../errors.js";
import { formatBytes } from "../train/plan-text.js";
import { catchStopSignals } from "../train/signals.js";
import { integerOption, numberOption } from "./options.js";

interface PrepareCommandOptions {
  out: string;
  tokenizer: string;
  kind: "text" | "code";
  validationFraction?: number;
  shardTokens?: number;
  maxRunShare?: number;
  invalidUtf8: "error" | "replace";
  overwrite?: true;
}

export function addPrepare(program: Command): void {
  program
    .command("prepare")
    .description("text or source code to token shards")
    .argument("<inputs...>", "files and folders, in this order")
    .requiredOption("--out <folder>", "data set to make; one that is there is replaced")
    .requiredOption("--tokenizer <path>", "a tokenizer.json or a folder with one")
    .addOption(
      new Option("--kind <kind>", "files to take from folders: .txt and .md, or source code")
        .choices(["text", "code"])
        .default("text"),
    )
    .addOption(
      numberOption("--validation-fraction <x>", "share of documents to hold out (default: 0.05)", {
        min: 0,
        max: 0.999999,
      }),
    )
    .addOption(
      integerOption("--shard-tokens <n>", "tokens per shard (default: 134217728)", 1, 2 ** 40),
    )
    .addOption(
      numberOption("--max-run-share <x>", "refuse repetitive shards beyond this (default: 0.1)", {
        min: 0,
        max: 1,
      }),
    )
    .addOption(
      new Option("--invalid-utf8 <how>", "bytes that are no UTF-8: refuse, or put U+FFFD in")
        .choices(["error", "replace"])
        .default("error"),
    )
    .option("--overwrite", "replace the output folder even if it is no data set")
    .action(async (inputs: string[], options: PrepareCommandOptions) => {
      const { kind, ...rest } = options;
      const result = await prepareWithProgress({
        ...rest,
        inputs: inputs.map((path) => ({ path, kind })),
      });
      if (result === null) process.exitCode = exitCodes.stopped;
    });
}

/** Prepares with a bar on a terminal and a summary; null if a signal stopped it, with nothing left behind. */
export async function prepareWithProgress(options: PrepareOptions): Promise<PrepareResult | null> {
  const { prepare } = await import("../data/prepare.js");
  const stop = new AbortController();
  const signals = catchStopSignals({ onRequest: () => stop.abort() });
  const bar = process.stdout.isTTY ? startBar(options.out) : null;
  try {
    const result = await prepare({
      ...options,
      signal: stop.signal,
      onProgress: ({ bytes, totalBytes, tokens }) => {
        bar?.setTotal(totalBytes);
        bar?.update(bytes, { tokens: tokens.toLocaleString("en-US") });
      },
    });
    bar?.stop();
    printSummary(result);
    return result;
  } catch (error) {
    if (!stop.signal.aborted) throw error;
    process.stderr.write(`stopped by ${signals.requested}; ${options.out} is as it was\n`);
    return null;
  } finally {
    bar?.stop();
    signals.dispose();
  }
}

function startBar(name: string): SingleBar {
  const format = `${name} {bar} {percentage}%  {tokens} tokens`;
  const bar = new SingleBar({ format, barsize: 20, hideCursor: true, gracefulExit: false });
  bar.start(1, 0, { tokens: "0" });
  return bar;
}

function printSummary({ folder, dataset, warnings }: PrepareResult): void {
  for (const warning of warnings) process.stderr.write(`warning: ${warning}\n`);
  for (const [split, { documents, tokens, bytes, shards }] of Object.entries(dataset.splits)) {
    if (documents === 0) continue;
    const perToken = (bytes / tokens).toFixed(2);
    process.stdout.write(
      `${folder}  ${split}: ${count(documents, "document")}, ${formatBytes(bytes)}, ` +
        `${count(tokens, "token")} (${perToken} bytes each), ${count(shards.length, "shard")}\n`,
    );
  }
  if (dataset.splits.train.documents === 0) throw new UsageError(`${folder}: nothing to train on`);
}

function count(n: number, noun: string): string {
  return `${n.toLocaleString("en-US")} ${noun}${n === 1 ? "" : "s"}`;
}
