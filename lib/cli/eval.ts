import { createHash } from "node:crypto";
import { readdir, realpath, stat } from "node:fs/promises";
import { join } from "node:path";
import { type Command, CommanderError, Option } from "commander";
import { parseDevice } from "../core/device.js";
import { exitCodes, LlamaForgeError, UsageError } from "../core/errors.js";
import { exitAtOnce } from "../core/exit.js";
import type { Tokenizer } from "../data/tokenizer.js";
import type { Cluster } from "../dist/cluster.js";
import type { World } from "../dist/world.js";
import type { EvaluationIdentity, EvaluationJournal } from "../eval/journal.js";
import type { EvaluationResults, FinishedTask } from "../eval/results.js";
import { type EvaluationSettings, evaluationOptions, evaluationSchema } from "../eval/schema.js";
import { taskList } from "../eval/table.js";
import type { EvalWorld } from "../eval/world.js";
import { EvaluationDisplay } from "./eval-progress.js";
import type { DownloadFlag } from "./hub-model.js";
import { modelFolder, ofCheckpoint } from "./model-folder.js";
import { addOptions, givenOptions } from "./options.js";
import { catchStopSignals } from "./signals.js";
import { print, printError } from "./terminal.js";

interface EvalCommandOptions extends DownloadFlag {
  tasks: string;
  tokenizer?: string;
  out?: string;
  compare?: true;
  startOver?: true;
  overwrite?: true;
  device: string;
  precision: "fp32" | "bf16";
}

export function addEval(program: Command): void {
  const command = program
    .command("eval")
    .description("score a model on tasks; the scores equal lm-evaluation-harness'")
    .argument("<folder>", "a run, a checkpoint, or a Hugging Face folder")
    .requiredOption(
      "--tasks <names>",
      "tasks, groups and YAML files, with commas between them; --list-tasks names them",
    );
  addOptions(command, evaluationOptions, "set")
    .option("--tokenizer <path>", "a tokenizer.json, or a folder with one (default: the model's)")
    .option("--out <file>", "write the scores as JSON, and keep finished tasks of a stopped call")
    .option("--start-over", "discard finished tasks of another evaluation beside --out")
    .option("--overwrite", "replace --out if it exists")
    .option("--compare", "print published scores of TinyLlama and others beside the model's")
    .option("--device <device>", "cpu, cuda or cuda:N", "cpu")
    .addOption(
      new Option("--precision <p>", "of weights and activations")
        .choices(["fp32", "bf16"])
        .default("fp32"),
    )
    .option("--list-tasks", "list all tasks and groups")
    .action(run);
  command.on("option:list-tasks", () => {
    print(`${taskList()}\n`);
    throw new CommanderError(0, "commander.helpDisplayed", "");
  });
}

async function run(folder: string, options: EvalCommandOptions, command: Command): Promise<void> {
  const settings = evaluationSchema.parse(givenOptions(command, evaluationOptions));
  const { worldOfRun } = await import("../train/join.js");
  const world = worldOfRun();
  try {
    await evaluateFolder(folder, options, settings, world);
  } catch (error) {
    if (world) (error as Error).message = `rank ${world.rank}: ${(error as Error).message}`;
    throw error;
  }
}

async function evaluateFolder(
  folder: string,
  options: EvalCommandOptions,
  settings: EvaluationSettings,
  world: World | null,
): Promise<void> {
  const { out, precision } = options;
  const [{ selectTasks }, { runEvaluation }, { loadModel }, { Tokenizer }, { endTokens }] =
    await Promise.all([
      import("../eval/registry.js"),
      import("../eval/evaluate.js"),
      import("../checkpoint/model.js"),
      import("../data/tokenizer.js"),
      import("../generate/end-tokens.js"),
    ]);
  const { deviceOfRank, shareThreads } = await import("../train/join.js");
  const selection = await selectTasks(options.tasks.split(",").map((name) => name.trim()));
  if (out !== undefined) await expectFree(out, options.overwrite ?? false);
  const device = world ? deviceOfRank(options.device, world) : parseDevice(options.device);
  shareThreads({ threads: undefined }, world);
  const place = await modelFolder(folder, options);
  const tokenizer = await Tokenizer.load(options.tokenizer ?? place);
  const first = (world?.rank ?? 0) === 0;
  const ends = await endTokens(place);
  const identity = await identityOf(place, { tokenizer, ends }, options, settings);
  const cluster = world ? await connect(world, device, identity) : null;
  const evalWorld = cluster ? (await import("../eval/world.js")).clusterWorld(cluster) : undefined;
  const journal = out !== undefined && first ? await openJournal(out, identity, options) : null;
  const stored = await agreeOnStored(journal, evalWorld);
  const model = await loadModel(place, { device, dtype: precision === "bf16" ? "bf16" : "f32" });
  const display = first ? new EvaluationDisplay() : null;
  const abort = new AbortController();
  const signals = catchStopSignals({ onRequest: () => abort.abort(), exit: exitAtOnce });
  const started = performance.now();
  let results: EvaluationResults;
  try {
    results = await runEvaluation({
      model,
      tokenizer,
      endTokens: ends,
      selection,
      // The other ranks answer, and only the first one reports.
      settings: first ? settings : { ...settings, bootstrap: 0, logSamples: false },
      world: evalWorld,
      signal: abort.signal,
      onProgress: (progress) => display?.update(progress),
      stored: ({ task, asked }) => stored(task.name, asked),
      onTask: async (task) => {
        await journal?.write(task).catch((error: Error) => {
          throw cannotKeep(out as string, task.name, error);
        });
      },
    });
  } catch (error) {
    cluster?.fail(error as Error);
    display?.stop();
    if (!abort.signal.aborted) throw ofCheckpoint(error, place);
    const kept = out === undefined ? "" : "; the same command goes on from the finished tasks";
    if (first) printError(`stopped by ${signals.requested}${kept}\n`);
    process.exitCode = exitCodes.stopped;
    return;
  } finally {
    signals.dispose();
    display?.stop();
    model.dispose();
  }
  if (first) await report(results, { ...options, folder, seconds: secondsSince(started) });
  await journal?.remove();
  await cluster?.meet("the end");
  await cluster?.close();
}

async function report(
  results: EvaluationResults,
  { out, compare, folder, seconds }: EvalCommandOptions & { folder: string; seconds: number },
): Promise<void> {
  const [
    { scoreTable, cutNote, rowsNote, comparisonTable },
    { compareWithPublished },
    { formatDuration },
  ] = await Promise.all([
    import("../eval/table.js"),
    import("../eval/published.js"),
    import("../plan/format.js"),
  ]);
  print(`${scoreTable(results)}\n`);
  for (const note of [cutNote(results), rowsNote(results)]) {
    if (note !== null) print(`\n${note}\n`);
  }
  if (compare) {
    const comparison = compareWithPublished(results, folder);
    print(
      comparison
        ? `\n${comparisonTable(comparison)}\n`
        : "\nno scores of these tasks were published with TinyLlama\n",
    );
  }
  const tasks = Object.keys(results["n-samples"]).length;
  print(`\n${tasks} ${tasks === 1 ? "task" : "tasks"} in ${formatDuration(seconds)}\n`);
  // The scores are on the screen already if their file cannot be written.
  if (out === undefined) return;
  const { writeResults } = await import("../eval/write-results.js");
  await writeResults(out, results).catch((error: Error) => {
    throw cannotWrite(out, error, keptIn(out));
  });
  print(`written to ${out}\n`);
}

function secondsSince(started: number): number {
  return (performance.now() - started) / 1000;
}

/** @throws UsageError if the result's file exists and must not be replaced */
async function expectFree(file: string, overwrite: boolean): Promise<void> {
  const status = await stat(file).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return null;
    throw cannotWrite(file, error);
  });
  if (status === null) return;
  if (status.isDirectory()) throw new UsageError(`--out ${file}: expected a file, it is a folder`);
  if (overwrite) return;
  throw new UsageError(`--out ${file} exists; --overwrite replaces it`);
}

function cannotWrite(out: string, cause: Error, help = ""): UsageError {
  return new UsageError(`--out ${out}: cannot write there: ${cause.message}${help}`, { cause });
}

function cannotKeep(out: string, task: string, cause: Error): UsageError {
  return new UsageError(
    `--out ${out}: cannot keep the scores of ${task}: ${cause.message}${keptIn(out)}`,
    { cause },
  );
}

function keptIn(out: string): string {
  return `. The tasks finished so far are in ${out}.unfinished; the same command goes on from them`;
}

async function openJournal(
  out: string,
  identity: EvaluationIdentity,
  { startOver = false }: { startOver?: boolean },
): Promise<EvaluationJournal> {
  const [{ EvaluationJournal }, { makeFolder }, { dirname }] = await Promise.all([
    import("../eval/journal.js"),
    import("../files/make-folder.js"),
    import("node:path"),
  ]);
  await makeFolder(dirname(out)).catch((error: Error) => {
    throw cannotWrite(out, error);
  });
  const folder = `${out}.unfinished`;
  return await EvaluationJournal.open(folder, identity, startOver).catch((error: Error) => {
    throw error instanceof LlamaForgeError ? error : cannotWrite(out, error);
  });
}

/**
 * The finished tasks of an earlier call. The other ranks learn which ones these are, and leave them
 * out.
 */
async function agreeOnStored(
  journal: EvaluationJournal | null,
  world: EvalWorld | undefined,
): Promise<(name: string, asked: string) => FinishedTask | undefined> {
  const own = [...(journal?.stored.values() ?? [])];
  if (!world)
    return (name, asked) => own.find((task) => task.name === name && task.asked === asked);
  const { onFirst } = await import("../eval/agree.js");
  const known = await onFirst(world, async () => own.map(({ name, asked }) => ({ name, asked })));
  return (name, asked) => {
    if (!known.some((task) => task.name === name && task.asked === asked)) return undefined;
    const full = own.find((task) => task.name === name);
    const empty = { questions: 0, fewShot: 0, cut: { prompts: 0, tokens: 0 }, values: {} };
    return full ?? { name, asked, ...empty };
  };
}

/**
 * Everything that decides scores apart from the questions, whose own hash decides whether a finished
 * task is taken over.
 */
async function identityOf(
  place: string,
  { tokenizer, ends }: { tokenizer: Tokenizer; ends: readonly number[] },
  { device, precision }: EvalCommandOptions,
  { limit, fewShot, seed, logSamples }: EvaluationSettings,
): Promise<EvaluationIdentity> {
  const { buildInfo } = await import("../core/native.js");
  const hash = createHash("sha256");
  for (const name of (await readdir(place)).sort()) {
    if (name !== "config.json" && !name.endsWith(".safetensors")) continue;
    const { size, mtimeMs } = await stat(join(place, name));
    hash.update(JSON.stringify([name, size, mtimeMs]));
  }
  return {
    model: await realpath(place),
    weights: hash.digest("hex").slice(0, 16),
    tokenizer: tokenizer.sha256.slice(0, 16),
    endTokens: ends.join(", ") || "the tokenizer's",
    program: `llamaforge ${buildInfo().version}`,
    device: device.replace(/:\d+$/, ""),
    precision,
    limit: String(limit ?? "all"),
    fewShot: String(fewShot ?? "the tasks' own"),
    seed: String(seed),
    logSamples: String(logSamples),
  };
}

async function connect(
  world: World,
  device: ReturnType<typeof parseDevice>,
  identity: EvaluationIdentity,
): Promise<Cluster> {
  const { Cluster } = await import("../dist/cluster.js");
  const cluster = await Cluster.connect(world, {
    device,
    strategy: "replicated",
    reduce: "fp32",
    timeoutMs: 600_000,
    startTimeoutMs: 600_000,
  });
  await cluster.compare("evaluation", identity);
  return cluster;
}
