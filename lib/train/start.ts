import type { Checkpoint } from "../checkpoint/load.js";
import { loadModel, loadWeights } from "../checkpoint/model.js";
import { loadOptimizer, optimizerFile } from "../checkpoint/optimizer.js";
import { readWeights, weightsFile } from "../checkpoint/weights.js";
import type { LoadedConfig, RunConfig } from "../config/index.js";
import { decidePrecision } from "../config/precision.js";
import type { RecipeChange } from "../config/recipe.js";
import { weightsDtype } from "../config/resolve.js";
import { scheduleOf } from "../config/schedule.js";
import type { Device } from "../core/device.js";
import { CheckpointError, DataError, UsageError } from "../core/errors.js";
import { faultPoint } from "../core/faults.js";
import { buildInfo } from "../core/native.js";
import { readDatasetFile } from "../data/dataset-file.js";
import { openHeldOut } from "../data/held-out.js";
import { Loader } from "../data/loader.js";
import { Mixture, type MixtureSource } from "../data/mixture.js";
import { Tokenizer } from "../data/tokenizer.js";
import { checkTokenizerFiles } from "../data/verify.js";
import type { Cluster } from "../dist/cluster.js";
import { createModel } from "../model/architectures.js";
import type { LanguageModel } from "../model/language-model.js";
import { LoraModel } from "../model/lora.js";
import type { StoreOptions } from "../nn/index.js";
import { AdamW } from "../optim/adamw.js";
import type { GuardOptions } from "../optim/guard.js";
import { Muon } from "../optim/muon.js";
import { repeatNotes, repeatsOf } from "../plan/repeats.js";
import { Canary } from "./canary.js";
import { answerEnds, cutNotes, documentEnds, openChat } from "./chat.js";
import { validationLoss, writeSamples } from "./evaluate.js";
import { deviceOfRank, factsOf, joinCluster, shareThreads, worldOfRun } from "./join.js";
import { describeDevice } from "./machine.js";
import { nextTokens, type Objective } from "./objective.js";
import { openRecords, releaseOutputFolder, takeOutputFolder } from "./output-folder.js";
import type { TrainerParts } from "./parts.js";
import { PreferenceObjective } from "./preference-objective.js";
import {
  agreedCheckpoint,
  checkIdentity,
  checkRecipe,
  findCheckpoint,
  goBackTo,
} from "./resume.js";
import { RunSaver } from "./saver.js";
import { startShardCheck } from "./shard-check.js";
import { runIdentity } from "./snapshot.js";
import { checkCounts, checkTrainerState, parseTrainerState } from "./state.js";
import type { RunTaskScores } from "./task-scores.js";

/** Options of `Trainer.create` besides the recipe. */
export interface TrainerOptions
  extends Pick<TrainerParts, "onNotice" | "onStep" | "onValidation" | "extraMetrics" | "signal"> {
  /**
   * Called when a checkpoint is complete on disk. Training goes on meanwhile, and the run's end
   * waits for it. Its error ends the run.
   */
  onCheckpoint?: (folder: string, step: number) => unknown;
  /**
   * Start of the run: "auto" for the newest valid checkpoint if there is one, "none" for a new run,
   * or a checkpoint's folder. Default: "auto". If the run has newer checkpoints than the given
   * folder, they are moved to `abandoned-N/` within its output folder.
   */
  resume?: "auto" | "none" | (string & {});
  /**
   * Refuses a checkpoint with a different recipe. Default: false; `onNotice` then reports the
   * differences.
   */
  resumeStrict?: boolean;
  /** Resumes from a checkpoint that was trained on other data. Default: false. */
  allowDataChange?: boolean;
  /**
   * Whether to write checkpoints. Default: true. With false, for measurements, the training result
   * is lost and disk space is not checked.
   */
  checkpoints?: boolean;
}

/**
 * Opens data and output folder, and builds or loads the model. Every incompatibility is reported
 * here, before anything is trained or written. After an error, everything opened so far is closed.
 */
export async function startRun(
  asked: LoadedConfig,
  options: TrainerOptions,
): Promise<TrainerParts> {
  const { resume = "auto", onNotice = console.warn } = options;
  let config = decidePrecision(asked, null);
  const world = worldOfRun();
  shareThreads(config, world);
  const device = deviceOfRank(config.device, world);
  const deviceName = await describeDevice(device);
  const first = world === null || world.rank === 0;
  const opened: (() => unknown)[] = [];
  let cluster: Cluster | null = null;
  try {
    cluster = world && (await joinCluster(config, world, device));
    if (cluster === null && config.parallel !== "replicated") {
      onNotice(
        `parallel: ${config.parallel} divides nothing here, for this process trains alone; ` +
          "start several with `llamaforge launch` or torchrun's variables",
      );
    }
    const { sequenceLength } = config.data;
    const { contextLength } = config.model;
    const split = { sequenceLength, contextLength, seed: config.seed } as const;
    const mixture = await Mixture.open(config.data.train, { ...split, split: "train" });
    opened.push(() => mixture.close());
    warnOfRepetition(mixture, onNotice);
    const { microBatch, accumulation } = config.batch;
    const windows = config.steps * microBatch * accumulation * (world?.worldSize ?? 1);
    for (const note of repeatNotes(repeatsOf(mixture, windows))) onNotice(note);
    const heldOut = await openHeldOut(config.data.train, split, onNotice);
    opened.push(() => heldOut?.close());
    const tokenizer = await loadTokenizer(mixture);
    tokenizer.assertFits({ vocabSize: config.model.vocabSize });
    checkPreferences(config, mixture);
    const chat = await openChat(mixture, tokenizer);
    for (const note of cutNotes(mixture)) onNotice(note);
    await cluster?.compare(
      "set-up",
      factsOf(config, device, {
        "the data": mixture.fingerprint,
        "the held-out data": heldOut?.fingerprint ?? "none",
        "the tokenizer": mixture.tokenizerSha256,
      }),
    );
    const saves = options.checkpoints ?? true;
    const output = first ? await takeOutputFolder(config, saves) : null;
    opened.push(() => releaseOutputFolder(output));
    if (output?.lock.takenOverFrom) {
      onNotice(
        `the last run in ${config.out}, ${output.lock.takenOverFrom}, ended without giving it back`,
      );
    }
    const scores = await openScores(config, first, onNotice);
    faultPoint("init");
    const ranks = world?.worldSize ?? 1;
    let changes: RecipeChange[] = [];
    const checkpoint = await agreedCheckpoint(cluster, async () => {
      const found = await findCheckpoint(config.out, resume, onNotice);
      if (found) {
        config = decidePrecision(asked, found);
        const state = parseTrainerState(found.trainer, found.path);
        const identity = runIdentity(config, mixture);
        checkIdentity(found, identity, { ...options, config, state, onNotice });
        checkTrainerState(state, found.step, sequenceLength, found.path);
        changes = checkRecipe(found, state, { config, ranks }, { ...options, onNotice });
      }
      return found;
    });
    const shardCheck = await startShardCheck(config, { mixture, heldOut, world, onNotice });
    opened.push(() => shardCheck?.close());
    config = decidePrecision(asked, checkpoint);
    const { model, optimizer } = await build(config, { checkpoint, device, cluster }, opened);
    const objective = await openObjective(config, device, opened);
    if (output && checkpoint && resume !== "auto") {
      await goBackTo(checkpoint, output.identity, onNotice);
    }
    const progress = checkpoint
      ? parseTrainerState(checkpoint.trainer, checkpoint.path)
      : { step: 0, tokens: 0, position: 0, skips: [] };
    const info = {
      config,
      deviceName,
      worldSize: ranks,
      parameters: model.parameterCount(),
      versions: { llamaforge: buildInfo().version, node: process.version },
    };
    const metrics =
      output &&
      (await openRecords(output.identity, info, { step: progress.step, changes }, onNotice));
    const loader = openLoader(config, { mixture, world, position: progress.position, onNotice });
    const saver = saves
      ? new RunSaver({
          config,
          model,
          optimizer,
          tokenizer,
          mixture,
          chat,
          cluster,
          identity: output?.identity ?? null,
          checkpoint: checkpoint?.path ?? null,
          onNotice,
        })
      : undefined;
    const { onStep, onValidation, onCheckpoint, extraMetrics, signal } = options;
    if (saver && onCheckpoint) saver.onCheckpoint = onCheckpoint;
    const { evaluate, sample, batch, data } = config;
    const [end = null] = documentEnds(mixture);
    const answering = { tokenizer, endTokens: answerEnds(chat, mixture, tokenizer) };
    return {
      model,
      optimizer,
      batches: loader,
      schedule: scheduleOf(config.optimizer),
      steps: config.steps,
      accumulation,
      clip: config.optimizer.clip,
      objective,
      masked: mixture.chats !== null,
      guard: config.guard,
      progress,
      ...(heldOut && {
        validate: {
          every: evaluate.every,
          measure: () =>
            validationLoss(model, heldOut, {
              batches: evaluate.batches,
              microBatch: batch.microBatch,
              documents: data,
              objective,
            }),
        },
      }),
      ...(writesSamples(model, config) && {
        sample: {
          every: sample.every,
          write: (step) => writeSamples(model, tokenizer, config, step, chat, end),
        },
      }),
      ...(scores && {
        score: {
          every: evaluate.tasksEvery ?? evaluate.every,
          measure: (_, failed) => scores.measure(model, answering, cluster, failed),
        },
      }),
      ...(saver && { saver }),
      records: metrics,
      cluster,
      canary: new Canary(model.store, config.canary.every),
      shardCheck,
      ...(extraMetrics && { extraMetrics }),
      ...(onStep && { onStep }),
      ...(onValidation && { onValidation }),
      ...(signal && { signal }),
      onNotice,
      recipe: { config, tokenizer, deviceName },
      close: async () => {
        await shardCheck?.close(loader.hangs);
        await loader.close();
        // A file is closed only after its reads.
        if (!loader.hangs) {
          await mixture.close();
          await heldOut?.close();
        }
        await metrics?.close();
        await releaseOutputFolder(output);
      },
    };
  } catch (error) {
    for (const close of opened.reverse()) await close();
    cluster?.fail(error as Error);
    throw error;
  }
}

/** Refuses preferences without a recipe for them, and such a recipe without preferences. */
function checkPreferences({ dpo }: RunConfig, { chats, sources }: Mixture): void {
  const pairs = chats?.pairs === true;
  if (pairs === (dpo !== undefined)) return;
  const [{ folder }] = sources as [MixtureSource];
  throw new UsageError(
    pairs
      ? `${folder} holds preferences: say dpo in the recipe, such as \`--set dpo.beta=0.1\`, and init.from`
      : `the recipe says dpo, but ${folder} holds no preferences: prepare them with --kind preference`,
  );
}

/** What the steps of a recipe minimise. The reference of preferences is the model of `init.from`. */
async function openObjective(
  { dpo, lora, init, precision }: RunConfig,
  device: Device,
  opened: (() => unknown)[],
): Promise<Objective> {
  if (!dpo) return nextTokens;
  // With adapters, the frozen model itself is the reference.
  if (lora) return new PreferenceObjective(dpo, null);
  const dtype = weightsDtype(precision);
  const reference = await loadModel(init.from as string, { device, dtype, training: false });
  opened.push(() => reference.dispose());
  reference.fp8 = precision === "fp8";
  return new PreferenceObjective(dpo, reference);
}

/** Opens the tasks that the run's model is scored on; null without any. */
async function openScores(
  { evaluate }: RunConfig,
  first: boolean,
  onNotice: (message: string) => void,
): Promise<RunTaskScores | null> {
  const { tasks, data, limit, fewShot } = evaluate;
  if (tasks.length === 0) return null;
  // Most runs score no tasks, and need not load them.
  const { RunTaskScores } = await import("./task-scores.js");
  const scores = await RunTaskScores.open({ tasks, data, limit, fewShot });
  // A missing file is known before the training, though it does not end it.
  if (first) {
    await scores.check((task, error) =>
      onNotice(`no score of ${task} for now: ${(error as Error).message}`),
    );
  }
  return scores;
}

/** Opens the micro-batches of a run from its current position. */
function openLoader(
  { batch, data }: RunConfig,
  from: {
    mixture: Mixture;
    world: Cluster["world"] | null;
    position: number;
    onNotice: (message: string) => void;
  },
): Loader {
  const { mixture, world, position, onNotice } = from;
  return new Loader(mixture, {
    batchSize: batch.microBatch,
    startPosition: position,
    rank: world?.rank ?? 0,
    worldSize: world?.worldSize ?? 1,
    // A step reads all of its batches before its first pass.
    prefetch: Math.max(data.prefetch, batch.accumulation),
    maskDocuments: data.maskDocuments,
    resetPositions: data.resetPositions,
    slowAfterMs: data.slowSeconds * 1000,
    limitMs: data.hangSeconds * 1000,
    onSlow: (waitedMs) =>
      onNotice(`waiting for data for ${Math.round(waitedMs / 1000)} s: is the storage slow?`),
  });
}

/**
 * Whether this process takes part in writing samples. Rank 0 writes them; with sharded weights, all
 * ranks compute them together.
 */
function writesSamples(model: LanguageModel, { sample }: RunConfig): boolean {
  const { parallel, divided } = model.store;
  if (sample.prompts.length === 0) return false;
  return !parallel || parallel.writes || divided;
}

async function loadTokenizer({ sources }: Mixture): Promise<Tokenizer> {
  const named = sources.find(({ dataset }) => dataset.tokenizer !== null)?.dataset;
  if (named?.tokenizer) {
    const { tokenizer: path, folder } = named;
    // A tokenizer inside one of our own data sets has hashes.
    if (path === folder) await checkTokenizerFiles(folder, await readDatasetFile(folder));
    return await Tokenizer.load(path);
  }
  throw new DataError(
    `${sources[0]?.folder} names no tokenizer, which checkpoints and samples need`,
  );
}

/**
 * Warns of runs of one token, which teach nothing and hide a fault of the preparation (FAULTS D5).
 */
function warnOfRepetition(mixture: Mixture, onNotice: (message: string) => void): void {
  for (const { folder, dataset } of mixture.sources) {
    const percent = 100 * dataset.repeatedShare;
    if (percent > 1)
      onNotice(`${folder}: ${percent.toFixed(1)}% of the tokens stand in runs of one token`);
  }
}

/**
 * Builds model and optimizer from a checkpoint, from the weights of `init.from`, or from the seed.
 */
async function build(
  config: RunConfig,
  start: { checkpoint: Checkpoint | null; device: Device; cluster: Cluster | null },
  opened: (() => unknown)[],
): Promise<{ model: LanguageModel; optimizer: AdamW }> {
  const { optimizer: options, guard } = config;
  const { checkpoint, device, cluster } = start;
  const dtype = weightsDtype(config.precision);
  const parallel = cluster ? { parallel: cluster.strategy } : {};
  const model = config.lora
    ? await withAdapters(config, { device, dtype }, parallel)
    : await createModel(config.model, { device, ...parallel, dtype, seed: config.seed });
  opened.push(() => model.dispose());
  model.recompute = config.recompute;
  model.fp8 = config.precision === "fp8";
  const optimizer = makeOptimizer(model, options, guard);
  opened.push(() => optimizer.dispose());
  if (checkpoint) {
    const stored = (name: string) => {
      const tensors = checkpoint.tensors.get(name);
      if (!tensors)
        throw new CheckpointError(`${checkpoint.path} has no ${name}: it cannot be resumed`);
      return tensors;
    };
    const weights = model.files.names?.weights ?? weightsFile;
    await loadWeights(model, stored(weights), checkpoint.path);
    const counts = await loadOptimizer(optimizer, stored(optimizerFile), checkpoint.path);
    const state = parseTrainerState(checkpoint.trainer, checkpoint.path);
    checkCounts(state, counts, checkpoint.path);
  } else if (config.init.from !== undefined && !config.lora) {
    await loadWeights(
      model,
      await readWeights(config.init.from, { followLinks: true }),
      config.init.from,
      { foreign: true },
    );
  }
  return { model, optimizer };
}

/** The frozen model of `init.from`, with adapters from the seed. */
async function withAdapters(
  config: RunConfig,
  place: { device: Device; dtype: "f32" | "bf16" },
  parallel: Pick<StoreOptions, "parallel">,
): Promise<LanguageModel> {
  const { lora, init, seed } = config;
  const base = await loadModel(init.from as string, place);
  const settings = { ...(lora as NonNullable<typeof lora>), base: init.from as string };
  try {
    return LoraModel.create(base, settings, { seed, ...parallel });
  } catch (error) {
    base.dispose();
    throw error;
  }
}

/** The recipe's optimizer. Embedding, head, norms and biases are AdamW's in any case. */
function makeOptimizer(
  model: LanguageModel,
  options: RunConfig["optimizer"],
  guard: GuardOptions,
): AdamW {
  const settings = { ...pick(options), guard };
  if (options.type === "adamw") return new AdamW(model.store, settings);
  const { momentum } = options;
  return new Muon(model.store, { ...settings, momentum, exclude: [model.headWeight] });
}

function pick({ beta1, beta2, eps, weightDecay, decay }: RunConfig["optimizer"]) {
  return { beta1, beta2, eps, weightDecay, decay };
}
