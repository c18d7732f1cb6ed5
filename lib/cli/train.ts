import { type Command, CommanderError } from "commander";
import { exitCodes } from "../errors.js";
import { configHelp, loadConfig, type RunConfig } from "../train/config.js";
import { describeValidation, formatDuration, Progress, printable } from "../train/progress.js";
import { catchStopSignals } from "../train/signals.js";
import type { TrainerResult } from "../train/trainer.js";
import { setOption } from "./options.js";

export function addTrain(program: Command): void {
  const command = program
    .command("train")
    .description("train a model; resumes by itself where an earlier run stopped")
    .argument("<config>", "YAML configuration of the run")
    .addOption(setOption())
    .option("--resume <from>", "auto (newest checkpoint), none, or a checkpoint's folder", "auto")
    .option("--help-config", "list all options of a configuration")
    .action(async (file: string, options: { set: string[]; resume: string }) => {
      const config = loadConfig(file, options.set);
      for (const override of options.set) say(`set ${override}`);
      const { result } = await trainWithProgress(config, options.resume);
      if (!result.finished) process.exitCode = exitCodes.stopped;
    });
  command.on("option:help-config", () => {
    process.stdout.write(configHelp());
    throw new CommanderError(0, "commander.helpDisplayed", "");
  });
}

/** What a training run left behind. */
export interface TrainOutcome {
  result: TrainerResult;
  /** Path of report.html; null if it could not be written. */
  report: string | null;
}

/** Trains with progress on the terminal, stops on signals, and writes the report at the end. */
export async function trainWithProgress(config: RunConfig, resume: string): Promise<TrainOutcome> {
  const { Trainer } = await import("../train/trainer.js");
  const trainer = await Trainer.create(config, { resume, onNotice: notice });
  const parameters = trainer.model.parameterCount();

  const { steps, batch, data } = config;
  const tokensPerStep = batch.microBatch * batch.accumulation * data.sequenceLength;
  say(`${config.name}: ${parameters.toLocaleString("en-US")} parameters, ${config.precision}`);
  say(`on ${trainer.deviceName}`);
  say(`${steps.toLocaleString("en-US")} steps of ${tokensPerStep.toLocaleString("en-US")} tokens`);
  if (trainer.startStep > 0) say(`going on from step ${trainer.startStep}`);

  const progress = new Progress({ steps, from: trainer.startStep });
  const signals = catchStopSignals({
    onRequest: (signal) => {
      progress.note(`${signal}: finishing the step and saving; once more ends it at once`);
      trainer.stop();
    },
  });
  try {
    for await (const step of trainer.run()) {
      // The summary shows what was measured after the last step.
      const last = step.step === steps;
      progress.step(last ? { ...step, validation: undefined, samples: undefined } : step);
    }
  } finally {
    progress.stop();
    signals.dispose();
  }
  const report = await tryReport(config.out);
  summarise(config, trainer.result, report);
  return { result: trainer.result, report };
}

/** A run is not lost because its report could not be written. */
async function tryReport(folder: string): Promise<string | null> {
  try {
    const { writeReport } = await import("../report/html.js");
    return await writeReport(folder);
  } catch (error) {
    notice(`no report: ${(error as Error).message}`);
    return null;
  }
}

function summarise(config: RunConfig, result: TrainerResult, report: string | null): void {
  const { step, finished, seconds, tokens, validation, samples, checkpoint } = result;
  say("");
  say(
    finished
      ? `done: ${tokens.toLocaleString("en-US")} tokens; this session took ${formatDuration(seconds)}`
      : `stopped after step ${step} of ${config.steps}; the same command goes on from there`,
  );
  if (validation !== null) say(describeValidation(validation));
  if (finished) {
    for (const { prompt, text } of samples) say(`\n  ${printable(prompt + text)}`);
    if (samples.length > 0) say("");
  }
  if (checkpoint !== null) say(`checkpoint  ${checkpoint}`);
  if (report !== null) say(`report      ${report}`);
}

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}

function notice(message: string): void {
  process.stderr.write(`note: ${message}\n`);
}
