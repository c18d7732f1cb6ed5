import { type Command, InvalidArgumentError, Option } from "commander";
import type { KernelsOptions } from "../bench/kernels.js";
import type { ParityOptions } from "../bench/parity.js";
import { readConfig } from "../config/index.js";
import type { Precision } from "../config/resolve.js";
import { parseDevice } from "../core/device.js";
import { ArgumentError } from "../core/errors.js";
import { type PresetName, presets } from "../model/presets.js";
import { decodeBesidePeer, parityBesidePeer } from "./bench-peer.js";
import { addJsonOption, prepareJsonFile, writeJsonFile } from "./json-file.js";
import { integerOption } from "./options.js";
import { print, printError } from "./terminal.js";

/** Model options shared by both benchmarks. */
interface ModelOptions {
  preset: PresetName;
  config?: string;
  device: string;
  precision?: "fp8" | "bf16" | "fp32";
  microBatch?: number;
  sequenceLength?: number;
  json?: string;
}

export interface PeerCommandOptions {
  peer?: string;
  peerScript?: string;
  peerArgs?: string;
}

export interface ParityCommandOptions extends ModelOptions, PeerCommandOptions {
  accumulation?: number;
  steps: number;
  warmup: number;
  recompute?: "none" | "ffn" | "block";
  data?: string;
}

interface DecodeCommandOptions extends ModelOptions, PeerCommandOptions {
  batch: string;
  prompt: number;
  tokens: number;
  runs: number;
}

interface ServeCommandOptions extends ModelOptions {
  rate: string;
  requests: number;
  streams: string;
  prompt: number;
  tokens: number;
}

interface KernelsCommandOptions extends ModelOptions {
  only?: string;
  runs: number;
}

export function addBench(program: Command): void {
  const bench = program
    .command("bench")
    .description("measure this machine: training beside published figures, and each kernel");
  const parity = addModelOptions(
    bench
      .command("parity")
      .description("train for some steps: tokens/s, MFU, memory, GPU-hours per 300B tokens"),
    ["bf16", "fp32", "fp8"],
  );
  parity
    .addOption(integerOption("--accumulation <n>", "micro-batches of a step; 4", 1, 1_000_000))
    .addOption(integerOption("--steps <n>", "steps that are timed", 1, 1_000_000).default(10))
    .addOption(integerOption("--warmup <n>", "steps before those", 0, 1_000_000).default(3))
    .addOption(
      new Option("--recompute <what>", "what backward computes again to save memory; none").choices(
        ["none", "ffn", "block"],
      ),
    )
    .option("--data <folder>", "a data set of `prepare` instead of random words")
    .option("--peer <python>", "also train the same in PyTorch with this Python; prints the ratio")
    .option("--peer-script <file>", "another program for --peer")
    .option("--peer-args <text>", "arguments of that program instead of those describing the run")
    .action((options: ParityCommandOptions) => runParity(parity, options));
  const kernels = addModelOptions(
    bench.command("kernels").description("time every kernel of a training step beside its floor"),
    ["bf16", "fp32"],
  );
  kernels
    .option("--only <text>", "only kernels with this in their name")
    .addOption(integerOption("--runs <n>", "timed runs, whose median counts", 1, 1000).default(5))
    .action(runKernels);
  const decode = addJsonOption(
    addPlaceOptions(
      bench.command("decode").description("write tokens with an engine, beside the memory's limit"),
      ["bf16", "fp32"],
    ),
  );
  decode
    .addOption(
      new Option("--batch <n,...>", "sequences at once, one measurement for each number")
        .argParser((text) => batchNumbers(text).join())
        .default("1,16,64"),
    )
    .addOption(integerOption("--prompt <n>", "tokens of each prompt", 1, 1_000_000).default(128))
    .addOption(integerOption("--tokens <n>", "tokens to write", 2, 1_000_000).default(128))
    .addOption(integerOption("--runs <n>", "timed runs, whose median counts", 1, 1000).default(3))
    .option("--peer <python>", "also decode in PyTorch with this Python; prints the ratio")
    .option("--peer-script <file>", "another program for --peer")
    .action((options: DecodeCommandOptions) => runDecode(decode, options));
  const serve = addJsonOption(
    addPlaceOptions(
      bench
        .command("serve")
        .description("answer requests that arrive at random over HTTP: latencies and tokens/s"),
      ["bf16", "fp32"],
    ),
  );
  serve
    .addOption(
      new Option("--rate <n,...>", "requests a second, one measurement for each number")
        .argParser((text) => rateNumbers(text).join())
        .default("1,4,16"),
    )
    .addOption(integerOption("--requests <n>", "requests at each rate", 1, 100_000).default(100))
    .addOption(
      new Option("--streams <n,...>", "streams at once beside the engine alone, for each number")
        .argParser((text) => batchNumbers(text).join())
        .default("64"),
    )
    .addOption(integerOption("--prompt <n>", "tokens of each prompt", 1, 1_000_000).default(128))
    .addOption(integerOption("--tokens <n>", "tokens of each answer", 2, 1_000_000).default(128))
    .action(runServe);
}

function batchNumbers(text: string): number[] {
  const numbers = text.split(",").map(Number);
  if (numbers.every((n) => Number.isSafeInteger(n) && n >= 1 && n <= 4096)) return numbers;
  throw new InvalidArgumentError("Expected integers from 1 to 4096 with commas between them.");
}

function rateNumbers(text: string): number[] {
  const numbers = text.split(",").map(Number);
  if (numbers.every((n) => n > 0 && n <= 1e5)) return numbers;
  throw new InvalidArgumentError("Expected numbers above 0 and up to 100000, with commas between.");
}

/** Options of a benchmark of training: the model, its device, and its windows. */
function addModelOptions(command: Command, precisions: readonly string[]): Command {
  return addJsonOption(
    addPlaceOptions(command, precisions)
      .addOption(
        integerOption(
          "--micro-batch <n>",
          "windows at a time; parity: the fastest that fits, kernels: 16",
          1,
          1_000_000,
        ),
      )
      .addOption(
        integerOption(
          "--sequence-length <n>",
          "tokens of a window; the model's context",
          1,
          1_000_000,
        ),
      ),
  );
}

/** Options of every benchmark: the model and its device. */
function addPlaceOptions(command: Command, precisions: readonly string[]): Command {
  return command
    .addOption(
      new Option("--preset <name>", "the model")
        .choices(Object.keys(presets))
        .default("tinyllama-1.1b")
        .conflicts("config"),
    )
    .option("--config <file>", "a run's configuration: its model, batch, precision and recompute")
    .option("--device <device>", "cuda, cuda:N or cpu", "cuda")
    .addOption(
      new Option("--precision <p>", "of weights and activations; bf16").choices(precisions),
    );
}

/**
 * Reads the model and its training settings from a configuration. Options of the command line
 * override it.
 */
async function modelOf(options: ModelOptions) {
  const run = options.config === undefined ? undefined : await readConfig(options.config, []);
  const model = run?.model ?? presets[options.preset];
  const sequenceLength = options.sequenceLength ?? run?.data.sequenceLength ?? model.contextLength;
  if (sequenceLength > model.contextLength) {
    throw new ArgumentError(
      `--sequence-length ${sequenceLength} is more than the model's context of ${model.contextLength}`,
    );
  }
  const { decidePrecision } = await import("../config/precision.js");
  const decided = run && decidePrecision({ ...run, device: options.device }, null);
  return {
    run,
    shared: {
      modelName: run?.name ?? options.preset,
      model,
      sequenceLength,
      device: parseDevice(options.device),
      precision: options.precision ?? decided?.precision ?? "bf16",
    },
  };
}

async function runParity(command: Command, options: ParityCommandOptions): Promise<void> {
  const { run, shared } = await modelOf(options);
  if (options.peer === undefined && (options.peerScript ?? options.peerArgs) !== undefined) {
    command.error("error: options '--peer-script' and '--peer-args' need '--peer <python>'");
  }
  const recompute = options.recompute ?? run?.recompute ?? "none";
  if (options.peer !== undefined && options.peerScript === undefined && recompute !== "none") {
    command.error(
      `error: option '--peer' compares the same work, and the peer recomputes nothing: --recompute is ${recompute}`,
    );
  }
  await prepareJsonFile(options.json);
  const { formatParity } = await import("../bench/parity-text.js");
  const measure = async () => {
    const { benchParity } = await import("../bench/parity.js");
    const microBatch = options.microBatch ?? run?.batch.microBatch;
    const { steps, warmup, data } = options;
    const parity: ParityOptions = {
      ...shared,
      ...(microBatch !== undefined && { microBatch }),
      accumulation: options.accumulation ?? run?.batch.accumulation ?? 4,
      steps,
      warmup,
      recompute,
      ...(data !== undefined && { data }),
      onProgress: say,
    };
    return await benchParity(parity);
  };
  const measured =
    options.peer === undefined
      ? { result: await measure() }
      : await parityBesidePeer(command, options, say);
  if (measured === null) return;
  await writeJsonFile(options.json, measured.result);
  print(formatParity(measured.result));
  if (measured.failure) throw measured.failure;
}

async function runKernels(options: KernelsCommandOptions): Promise<void> {
  const { run, shared } = await modelOf(options);
  await prepareJsonFile(options.json);
  const { benchKernels } = await import("../bench/kernels.js");
  const { formatKernels } = await import("../bench/kernels-text.js");
  const { only, runs } = options;
  const kernels: KernelsOptions = {
    ...shared,
    precision: weightsPrecision(shared.precision),
    microBatch: options.microBatch ?? run?.batch.microBatch ?? 16,
    ...(only !== undefined && { only }),
    runs,
    onProgress: say,
  };
  const result = await benchKernels(kernels);
  await writeJsonFile(options.json, result);
  print(formatKernels(result));
}

async function runDecode(command: Command, options: DecodeCommandOptions): Promise<void> {
  const { shared } = await modelOf(options);
  await prepareJsonFile(options.json);
  if (options.peer === undefined && options.peerScript !== undefined) {
    command.error("error: option '--peer-script' needs '--peer <python>'");
  }
  if (options.peer !== undefined) {
    const measured = await decodeBesidePeer(command, options, say);
    if (!measured) return;
    await writeJsonFile(options.json, measured.result);
    const { formatDecode } = await import("../bench/decode-text.js");
    print(formatDecode(measured.result));
    if (measured.failure) throw measured.failure;
    return;
  }
  const { benchDecode } = await import("../bench/decode.js");
  const { formatDecode } = await import("../bench/decode-text.js");
  const { modelName, model, device, precision } = shared;
  const { batch, prompt: promptTokens, tokens, runs } = options;
  const result = await benchDecode({
    ...{ modelName, model, device, precision: weightsPrecision(precision) },
    ...{ batches: batchNumbers(batch), promptTokens, tokens, runs },
    onProgress: say,
  });
  await writeJsonFile(options.json, result);
  print(formatDecode(result));
}

async function runServe(options: ServeCommandOptions): Promise<void> {
  const { shared } = await modelOf(options);
  await prepareJsonFile(options.json);
  const { benchServe } = await import("../bench/serve.js");
  const { formatServe } = await import("../bench/serve-text.js");
  const { modelName, model, device, precision } = shared;
  const { rate, requests, streams, prompt: promptTokens, tokens } = options;
  const result = await benchServe({
    ...{ modelName, model, device, precision: weightsPrecision(precision) },
    ...{ rates: rateNumbers(rate), requests, streams: batchNumbers(streams), promptTokens, tokens },
    onProgress: say,
  });
  await writeJsonFile(options.json, result);
  print(formatServe(result));
}

/** The precision of a model's weights, which generation computes in: bf16 for a recipe in fp8. */
const weightsPrecision = (precision: Precision) => (precision === "fp8" ? "bf16" : precision);

function say(message: string): void {
  printError(`${message}\n`);
}
