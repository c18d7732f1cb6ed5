import { SingleBar } from "cli-progress";
import type { Command } from "commander";
import { boundedList } from "../core/bounded-list.js";
import { exitCodes, UsageError } from "../core/errors.js";
import { codeOfSignal, exitAtOnce } from "../core/exit.js";
import { visibleLine } from "../core/visible.js";
import { formatBytes } from "../plan/format.js";
import { loadPrepareConfig } from "../prepare/description.js";
import type { PrepareOptions, PrepareProgress, PrepareResult } from "../prepare/prepare.js";
import { type Input, inputSchema, prepareSchema } from "../prepare/schema.js";
import { addDownloadOption, type DownloadFlag, hubFolder } from "./hub-model.js";
import { addOptions, givenOptions } from "./options.js";
import { catchStopSignals, tolerateFullOutput } from "./signals.js";
import { print, printError, printResult } from "./terminal.js";

// Per-input options. With several inputs, a recipe sets them for each input; the command line sets
// them for all.
const selection = inputSchema.omit({ path: true, exclude: true, to: true }).shape;
const { out, tokenizer, ...settings } = prepareSchema.shape;

interface PrepareFlags extends DownloadFlag {
  config?: string;
  json?: true;
}

export function addPrepare(program: Command): void {
  const command = program
    .command("prepare")
    .description("text, source code, jsonl and parquet to token shards")
    .argument(
      "[inputs...]",
      "files, folders and patterns, in this order; with --config, its folder",
    )
    .option("--config <file>", "a recipe of the data set, e.g. configs/data/slimpajama.yaml")
    .option("--json", "print the result as JSON");
  addDownloadOption(command);
  addOptions(command, { out, tokenizer, ...selection, ...settings }, "told").action(
    async (inputs: string[], flags: PrepareFlags) => {
      const { config, json } = flags;
      tolerateFullOutput();
      const options = await completeOptions(inputs, config, command);
      if (typeof options.tokenizer === "string") {
        options.tokenizer = await hubFolder(options.tokenizer, flags, "tokenizer");
      }
      const result = await prepareWithProgress(options, json ? "json" : "text");
      if (result === null) process.exitCode = exitCodes.stopped;
    },
  );
}

/** The recipe's options, overridden by those of the command line. */
async function completeOptions(
  paths: readonly string[],
  config: string | undefined,
  command: Command,
): Promise<PrepareOptions> {
  const own = givenOptions(command, selection);
  let inputs: Input[] = paths.map((path) => ({ path, ...own }));
  let recipe: Partial<PrepareOptions> = {};
  if (config !== undefined) {
    if (paths.length > 1) command.error("error: with --config, name one folder that it reads");
    const loaded = await loadPrepareConfig(config, paths[0]);
    recipe = loaded.options;
    inputs = loaded.inputs.map((input) => ({ ...input, ...own }));
  } else if (paths.length === 0) command.error("error: missing required argument 'inputs'");
  const options = { ...recipe, ...givenOptions(command, prepareSchema.shape) };
  const { out, tokenizer } = options;
  if (out === undefined) command.error("error: required option '--out <folder>' not specified");
  if (tokenizer === undefined)
    command.error("error: required option '--tokenizer <path>' not specified");
  return { ...options, inputs, out, tokenizer };
}

/**
 * Prepares with a progress bar on a terminal and a summary.
 * @param as the form of the summary
 * @returns null if a signal stopped it
 */
export async function prepareWithProgress(
  options: PrepareOptions,
  as: "text" | "json" | "short" = "text",
): Promise<PrepareResult | null> {
  const { prepare } = await import("../prepare/prepare.js");
  const stop = new AbortController();
  let begun = false;
  const signals = catchStopSignals({
    onRequest: (signal) => {
      stop.abort();
      // No work has been done that must be kept, and the pending operation may never end.
      if (!begun) setTimeout(() => exitAtOnce(codeOfSignal(signal)), 1000).unref();
    },
    exit: exitAtOnce,
  });
  const bar = process.stdout.isTTY && as !== "json" ? new Bar(options.out) : null;
  const started = performance.now();
  try {
    const result = await prepare({
      ...options,
      signal: stop.signal,
      onProgress: (progress) => {
        begun = true;
        bar?.update(progress);
      },
    });
    bar?.stop();
    if (as === "json") printJson(result);
    else printSummary(result, (performance.now() - started) / 1000, as === "short");
    const { train } = result.dataset.splits;
    if (train.documents === 0) throw new UsageError(`${result.folder}: nothing to train on`);
    return result;
  } catch (error) {
    if (!stop.signal.aborted) throw error;
    bar?.stop();
    if (!begun) exitAtOnce(codeOfSignal(signals.requested as NodeJS.Signals));
    printError(
      `stopped by ${signals.requested}; ${options.out} is as it was, and the same command goes on with the work\n`,
    );
    return null;
  } finally {
    bar?.stop();
    signals.dispose();
  }
}

/** A progress bar with work done, speed and remaining time. */
class Bar {
  readonly #bar: SingleBar;
  readonly #started = performance.now();
  #first: PrepareProgress | null = null;

  constructor(name: string) {
    // The bar would take a name in braces for one of its fields.
    const shown = visibleLine(name).replaceAll(/[{}]/g, "_");
    const format = `${shown} {bar} {percentage}%  {documents} documents  {tokens} tokens  {speed}  {left}`;
    this.#bar = new SingleBar({ format, barsize: 20, hideCursor: true, gracefulExit: false });
    this.#bar.start(1, 0, { documents: "0", tokens: "0", speed: "", left: "" });
  }

  update(progress: PrepareProgress): void {
    this.#first ??= progress;
    const { bytes, totalBytes, textBytes, documents, tokens } = progress;
    const seconds = (performance.now() - this.#started) / 1000;
    const perSecond = (bytes - this.#first.bytes) / seconds;
    const text = (textBytes - this.#first.textBytes) / seconds / 1e6;
    this.#bar.setTotal(totalBytes);
    this.#bar.update(bytes, {
      documents: documents.toLocaleString("en-US"),
      tokens: tokens.toLocaleString("en-US"),
      speed: text > 0 ? `${text.toFixed(1)} MB/s` : "",
      left: perSecond > 0 ? `${formatDuration((totalBytes - bytes) / perSecond)} left` : "",
    });
  }

  stop(): void {
    this.#bar.stop();
  }
}

function formatDuration(seconds: number): string {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function printJson({ folder, dataset, warnings, passedOver }: PrepareResult): void {
  printResult(`${JSON.stringify({ folder, ...dataset, warnings, passedOver }, null, 2)}\n`);
}

/** @param short the splits alone, without what was not read and the longest document */
function printSummary(result: PrepareResult, seconds: number, short: boolean): void {
  const { folder, dataset, warnings, passedOver, longest, resumedDocuments } = result;
  printError(boundedList(warnings.map((warning) => `warning: ${warning}`)));
  if (warnings.length > 0) printError("\n");
  const printLine = (line: string) => print(`${line}\n`);
  for (const [split, { documents, tokens, bytes, shards }] of Object.entries(dataset.splits)) {
    if (documents === 0) continue;
    const perToken = (bytes / tokens).toFixed(2);
    const repeated = shards.reduce((sum, shard) => sum + shard.repeatedTokens, 0) / tokens;
    printLine(
      `${folder}  ${split}: ${count(documents, "document")}, ${formatBytes(bytes)}, ` +
        `${count(tokens, "token")} (${perToken} bytes each), ${count(shards.length, "shard")}` +
        (repeated > 0.001 ? `, ${(100 * repeated).toFixed(1)}% in runs of one token` : ""),
    );
  }
  if (short) return;
  const total = dataset.sources.reduce((sum, { tokens = 0 }) => sum + tokens, 0);
  if (dataset.sources.length > 1) {
    for (const { path, documents, tokens = 0 } of dataset.sources) {
      const share = ((100 * tokens) / total).toFixed(1);
      printLine(
        `  ${share.padStart(5)}%  ${count(tokens, "token")}, ${count(documents, "document")}  ${path}`,
      );
    }
  }
  for (const { path, lines } of passedOver) {
    printLine(`  not read of ${path}:`);
    for (const line of lines) printLine(`    ${line}`);
  }
  const [first] = longest;
  if (first && total > 100_000)
    printLine(`  longest document: ${count(first.tokens, "token")}, ${first.origin}`);
  const bytes = dataset.sources.reduce((sum, source) => sum + source.bytes, 0);
  if (seconds > 10 && resumedDocuments === 0) {
    printLine(`  ${formatDuration(seconds)}, ${(bytes / 1e6 / seconds).toFixed(1)} MB/s`);
  }
}

function count(n: number, noun: string): string {
  return `${n.toLocaleString("en-US")} ${noun}${n === 1 ? "" : "s"}`;
}
