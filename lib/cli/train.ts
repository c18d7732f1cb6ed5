import { hostname } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Command, CommanderError } from "commander";
import { configHelp, type LoadedConfig, readConfig } from "../config/index.js";
import { exitCodes } from "../core/errors.js";
import { codeOfSignal, exitAtOnce } from "../core/exit.js";
import { describeWorld } from "../dist/world.js";
import { FolderIdentity } from "../files/folder-identity.js";
import { formatDuration } from "../plan/format.js";
import { runFiles } from "../train/metrics.js";
import { describeTimes } from "../train/run-times.js";
import type { Trainer, TrainerOptions, TrainerResult } from "../train/trainer.js";
import { addDownloadOption, type DownloadFlag, hubFolder } from "./hub-model.js";
import { integerOption, setOption } from "./options.js";
import {
  describeScores,
  describeStep,
  describeValidation,
  ProgressDisplay,
  printable,
} from "./progress.js";
import { RankLog, rankLogFile } from "./rank-log.js";
import { catchStopSignals, type StopSignals, tolerateFullOutput } from "./signals.js";
import { onSupervisorGone, supervise } from "./supervise.js";
import { print, printError } from "./terminal.js";
import { Watchers, type WatchOptions } from "./watch.js";

interface TrainCommandOptions extends DownloadFlag {
  set: string[];
  resume: string;
  resumeStrict?: true;
  allowDataChange?: true;
  supervise?: true;
  maxRestarts: number;
  dashboard?: true | number;
  tensorboard?: true;
}

const cliFile = fileURLToPath(new URL("./main.js", import.meta.url));

export function addTrain(program: Command): void {
  const command = program
    .command("train")
    .description("train a model; resumes by itself where an earlier run stopped")
    .argument("<config>", "YAML configuration of the run")
    .addOption(setOption())
    .option(
      "--resume <from>",
      "auto (newest checkpoint), none, or a checkpoint's folder; newer ones are set aside",
      "auto",
    )
    .option(
      "--resume-strict",
      "end with 2 if the recipe is not the checkpoint's, instead of saying so",
    )
    .option("--allow-data-change", "go on from a checkpoint though the data has changed since")
    .option("--supervise", "start it again from its newest checkpoint when it crashes")
    .addOption(
      integerOption(
        "--max-restarts <n>",
        "restarts in a row without a new checkpoint before --supervise gives up",
        0,
        1_000_000,
      ).default(3),
    )
    .addOption(
      integerOption(
        "--dashboard [port]",
        "show the run live on a page of this machine, with its figures for Prometheus at /metrics",
        0,
        65_535,
      ),
    )
    .option("--tensorboard", "also write the steps for TensorBoard, below the run's folder")
    .option("--help-config", "list all options of a configuration");
  addDownloadOption(command).action(async (file: string, options: TrainCommandOptions) => {
    const config = await readConfig(file, options.set, (model) => hubFolder(model, options));
    tolerateFullOutput();
    if (options.supervise) {
      process.exitCode = await superviseTraining(file, config, options);
      return;
    }
    const { worldOfRun } = await import("../train/join.js");
    if ((worldOfRun()?.rank ?? 0) === 0) {
      for (const override of options.set) say(`set ${override}`);
    }
    const { resume, resumeStrict = false, allowDataChange = false } = options;
    const from = { resume, resumeStrict, allowDataChange };
    const { result } = await trainWithProgress(config, from, options);
    if (!result.finished) process.exitCode = exitCodes.stopped;
  });
  command.on("option:help-config", () => {
    print(configHelp());
    throw new CommanderError(0, "commander.helpDisplayed", "");
  });
}

/** Runs the training in a child process with the options of this command line. */
async function superviseTraining(
  file: string,
  { out }: LoadedConfig,
  options: TrainCommandOptions,
): Promise<number> {
  const { set, resume, resumeStrict, allowDataChange, maxRestarts } = options;
  const overrides = set.flatMap((override) => ["--set", override]);
  if (allowDataChange) overrides.push("--allow-data-change");
  if (resumeStrict) overrides.push("--resume-strict");
  if (options.tensorboard) overrides.push("--tensorboard");
  if (options.dashboard !== undefined)
    overrides.push(
      "--dashboard",
      String(Number(options.dashboard === true ? 0 : options.dashboard)),
    );
  return await supervise({
    out,
    resume,
    maxRestarts,
    command: (from) => [cliFile, "train", file, ...overrides, "--resume", from],
    onReport: notice,
  });
}

/** Outcome of a training run. */
export interface TrainOutcome {
  result: TrainerResult;
  /** Path of report.html; null if it could not be written. */
  report: string | null;
}

/**
 * Trains with progress on the terminal, stops on signals, and writes the report at the end. Among
 * several ranks only the first one prints progress. Every rank has a log in the run's folder, and
 * reports its own error.
 */
export async function trainWithProgress(
  config: LoadedConfig,
  from: Pick<TrainerOptions, "resume" | "resumeStrict" | "allowDataChange">,
  watch: WatchOptions = {},
): Promise<TrainOutcome> {
  // Imported lazily, because it loads the addon and `doctor` must be able to report that this
  // fails.
  const { worldOfRun } = await import("../train/join.js");
  const world = worldOfRun();
  if (world === null) return await trainAlone(config, from, null, watch);
  const log = await RankLog.open(rankLogFile(config.out, world.rank));
  log.write(
    `${describeWorld(world)}, process ${process.pid} on ${hostname()}, by ${world.launcher}`,
  );
  try {
    return await trainAlone(config, from, { log, first: world.rank === 0 }, watch);
  } catch (error) {
    const { message, stack } = error as Error;
    log.write(stack ?? message);
    (error as Error).message = `rank ${world.rank}: ${message}`;
    throw error;
  } finally {
    await log.close();
  }
}

async function trainAlone(
  config: LoadedConfig,
  from: Pick<TrainerOptions, "resume" | "resumeStrict" | "allowDataChange">,
  ranked: { log: RankLog; first: boolean } | null,
  watch: WatchOptions,
): Promise<TrainOutcome> {
  const first = ranked?.first ?? true;
  const onNotice = (message: string): void => {
    ranked?.log.write(message);
    if (first) notice(message);
  };
  // Before the first step there is nothing to save. SIGINT and SIGTERM then end the process by
  // themselves, even if a thread waits for storage that is gone. A run outlives its terminal from
  // the start.
  process.on("SIGHUP", ignore);
  let stop: (why: string, signal?: NodeJS.Signals) => void = () => exitAtOnce(exitCodes.stopped);
  let signals: StopSignals | undefined;
  onSupervisorGone(() => stop("the supervisor is gone"));
  let progress: ProgressDisplay | undefined;
  let folder: FolderIdentity | null = null;
  let result: TrainerResult;
  let watchers: Watchers | null = null;
  let outcome = "the run failed; the terminal has the reason";
  try {
    const { Trainer } = await import("../train/trainer.js");
    const { describePrecision } = await import("../config/precision.js");
    const trainer = await Trainer.create(config, { ...from, onNotice });
    if (first) folder = await FolderIdentity.of(config.out);
    if (first) introduce(trainer, describePrecision(config.precision, trainer.config));
    ranked?.log.write(`on ${trainer.deviceName}, through ${trainer.communicationBackend}`);
    const { steps } = config;
    const shown = first ? new ProgressDisplay({ steps, from: trainer.startStep }) : undefined;
    progress = shown;
    stop = (why, signal) => {
      // Other ranks may be a step ahead; all ranks stop at the same step.
      const begun = ranked !== null || trainer.result.step > trainer.startStep;
      if (!begun) exitAtOnce(signal ? codeOfSignal(signal) : exitCodes.stopped);
      const text = `${why}: finishing the step and saving; once more ends it at once`;
      shown?.note(text);
      ranked?.log.write(text);
      trainer.stop();
    };
    if (first) watchers = await Watchers.open(trainer, watch, { stop, onNotice });
    signals = catchStopSignals({ onRequest: (signal) => stop(signal, signal), exit: exitAtOnce });
    for await (const step of trainer.run()) {
      ranked?.log.write(
        `step ${step.step}  ${describeStep(step)}  ${step.stepMs.toFixed(1)} ms, ` +
          `${step.dataWaitMs.toFixed(1)} ms for data`,
      );
      watchers?.step(step);
      // The summary includes measurements made after the last step.
      const last = step.step === steps;
      shown?.step(
        last ? { ...step, validation: undefined, samples: undefined, scores: undefined } : step,
      );
    }
    result = trainer.result;
    ranked?.log.write(`ended after step ${result.step}; sent ${trainer.sentBytes} bytes`);
    for (const line of timesOf(result)) ranked?.log.write(line);
    outcome = result.finished ? "the run is done" : `stopped and saved after step ${result.step}`;
  } catch (error) {
    await folder?.close();
    throw error;
  } finally {
    progress?.stop();
    await watchers?.close(outcome);
    signals?.dispose();
    process.off("SIGHUP", ignore);
  }
  if (!folder) return { result, report: null };
  const report = await tryReport(folder);
  summarise(config, result, report);
  return { result, report };
}

function introduce(trainer: Trainer, precision: string): void {
  const { config, model, deviceName, startStep, world } = trainer;
  const { name, steps, batch, data, parallel } = config;
  const ranks = world?.worldSize ?? 1;
  const tokensPerStep = batch.microBatch * batch.accumulation * ranks * data.sequenceLength;
  say(`${name}: ${model.parameterCount().toLocaleString("en-US")} parameters, ${precision}`);
  say(`on ${deviceName}`);
  if (world) say(`${ranks} ranks, ${parallel}, through ${trainer.communicationBackend}`);
  say(`${steps.toLocaleString("en-US")} steps of ${tokensPerStep.toLocaleString("en-US")} tokens`);
  if (startStep > 0) say(`going on from step ${startStep}`);
}

/** Writes the report. A failure to write it does not fail the run. */
async function tryReport(folder: FolderIdentity): Promise<string | null> {
  try {
    const { writeReport } = await import("../report/html.js");
    const file = join(folder.root, runFiles.report);
    return folder.named(await writeReport(folder.path, file, folder));
  } catch (error) {
    notice(`no report: ${folder.named((error as Error).message)}`);
    return null;
  } finally {
    await folder.close();
  }
}

function summarise(config: LoadedConfig, result: TrainerResult, report: string | null): void {
  const { step, finished, seconds, tokens, validation, samples, scores, checkpoint } = result;
  say("");
  say(
    finished
      ? `done: ${tokens.toLocaleString("en-US")} tokens; this session took ${formatDuration(seconds)}`
      : `stopped after step ${step} of ${config.steps}; the same command goes on from there`,
  );
  for (const line of timesOf(result)) say(line);
  if (validation !== null) say(describeValidation(validation));
  if (scores.length > 0) say(describeScores(scores));
  if (finished) {
    for (const { prompt, text } of samples) say(`\n  ${printable(prompt + text)}`);
    if (samples.length > 0) say("");
  }
  if (checkpoint !== null) say(`checkpoint  ${checkpoint}`);
  if (report !== null) say(`report      ${report}`);
}

/**
 * Describes the run's times. Empty if no step was trained, as for a finished run that was started
 * again.
 */
function timesOf({ times }: TrainerResult): string[] {
  return times === null || times.steps === 0 ? [] : describeTimes(times);
}

function ignore(): void {}

function say(text: string): void {
  print(`${text}\n`);
}

function notice(message: string): void {
  printError(`note: ${message}\n`);
}
