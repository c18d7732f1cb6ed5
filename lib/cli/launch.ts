import { fileURLToPath } from "node:url";
import type { Command } from "commander";
import { readConfig } from "../config/index.js";
import { UsageError } from "../core/errors.js";
import { launch } from "../dist/launch.js";
import { integerOption } from "./options.js";
import { tolerateFullOutput } from "./signals.js";
import { onSupervisorGone, supervise } from "./supervise.js";
import { printError } from "./terminal.js";

interface LaunchCommandOptions {
  nproc: number;
  maxRestarts: number;
}

const cliFile = fileURLToPath(new URL("./main.js", import.meta.url));

export function addLaunch(program: Command): void {
  program
    .command("launch")
    .description("run a command as several ranks on this host, a GPU each")
    .usage("--nproc <n> [options] -- train <config> ...")
    .argument("<command...>", "what each rank runs, behind --: train and its arguments")
    .addOption(integerOption("--nproc <n>", "ranks on this host", 1, 1024).makeOptionMandatory())
    .addOption(
      integerOption(
        "--max-restarts <n>",
        "start all ranks again from the newest checkpoint when one fails, until this many in a row brought no new one",
        0,
        1_000_000,
      ).default(0),
    )
    .action(async (command: string[], options: LaunchCommandOptions) => {
      if (command[0] === "launch") throw new UsageError("launch cannot launch itself");
      tolerateFullOutput();
      process.exitCode =
        options.maxRestarts > 0
          ? await launchAgain(command, options)
          : await launchOnce(command, options);
    });
}

async function launchOnce(command: string[], { nproc }: LaunchCommandOptions): Promise<number> {
  onSupervisorGone(() => process.kill(process.pid, "SIGTERM"));
  return await launch({
    processes: nproc,
    command: [cliFile, ...command],
    onReport: report,
  });
}

/** Runs a launcher in a child process and restarts it like a supervised run. */
async function launchAgain(
  command: string[],
  { nproc, maxRestarts }: LaunchCommandOptions,
): Promise<number> {
  const { file, set, resume, rest } = trainArguments(command);
  const { out } = await readConfig(file, set);
  return await supervise({
    out,
    resume,
    maxRestarts,
    command: (from) => {
      const ranks = ["train", file, ...rest, "--resume", from];
      return [cliFile, "launch", "--nproc", `${nproc}`, "--", ...ranks];
    },
    onReport: report,
  });
}

/** Parses a `train` command line, so that restarts can continue from its newest checkpoint. */
function trainArguments(command: string[]): {
  file: string;
  set: string[];
  resume: string;
  rest: string[];
} {
  const [name, ...args] = command;
  if (name !== "train") {
    throw new UsageError(`--max-restarts knows how to go on with train, not with ${name}`);
  }
  const set: string[] = [];
  const rest: string[] = [];
  let file: string | undefined;
  let resume = "auto";
  for (let i = 0; i < args.length; i++) {
    const [flag = "", ...inline] = (args[i] as string).split("=");
    const valued = flag === "--set" || flag === "--resume";
    const value = inline.length > 0 ? inline.join("=") : valued ? (args[++i] ?? "") : "";
    if (flag === "--set") {
      set.push(value);
      rest.push("--set", value);
    } else if (flag === "--resume") {
      resume = value;
    } else if (flag.startsWith("-")) {
      throw new UsageError(`--max-restarts cannot be combined with ${flag}`);
    } else if (file === undefined) {
      file = args[i] as string;
    } else {
      throw new UsageError(`train takes one configuration, got ${file} and ${args[i]}`);
    }
  }
  if (file === undefined) throw new UsageError("train needs a configuration behind --");
  return { file, set, resume, rest };
}

function report(message: string): void {
  printError(`launch: ${message}\n`);
}
