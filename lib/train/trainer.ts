import { HostCopies } from "../checkpoint/host-copies.js";
import type { MovedFolderError } from "../checkpoint/moved.js";
import { CheckpointWriter, type SavedCheckpoint } from "../checkpoint/save.js";
import { type LoadedConfig, type RunConfig, resolveConfig } from "../config/index.js";
import {
  checkBoolean,
  checkFunction,
  checkMade,
  checkObject,
  checkOptions,
  checkString,
} from "../core/check-values.js";
import { DivergedError, UsageError } from "../core/errors.js";
import { faultPoint } from "../core/faults.js";
import { residentBytes } from "../core/machine-limits.js";
import { memory } from "../core/runtime.js";
import { Loader } from "../data/loader.js";
import type { Mixture } from "../data/mixture.js";
import type { ShardCheck } from "../data/shard-check.js";
import type { Tokenizer } from "../data/tokenizer.js";
import type { Cluster } from "../dist/cluster.js";
import type { Llama } from "../model/llama.js";
import type { AdamW } from "../optim/adamw.js";
import { readDecision } from "../optim/guard.js";
import { cosineSchedule } from "../optim/schedule.js";
import { Canary } from "./canary.js";
import type { PauseMs } from "./device-waits.js";
import { needStarts } from "./documents.js";
import { validationLoss, writeSamples } from "./evaluate.js";
import { nonFiniteGroups } from "./finite.js";
import type { MetricsWriter, Sample, StepMetrics, Validation } from "./metrics.js";
import { RunTimes, type RunTimeTotals } from "./run-times.js";
import { SideProducts } from "./side-products.js";
import { SkipHistory } from "./skips.js";
import { snapshot } from "./snapshot.js";
import {
  type OutputFolder,
  releaseOutputFolder,
  startRun,
  type TrainerOptions,
  type TrainerParts,
} from "./start.js";
import { type RunningStep, trainStep } from "./step.js";

export type { TrainerOptions } from "./start.js";

/** Steps that may be enqueued before the first of them has been waited for: the device never idles, memory stays bounded. */
const runAhead = 2;

/** How a run ended. */
export interface TrainerResult {
  step: number;
  tokens: number;
  /** Whether all steps are done; false after `stop()`. */
  finished: boolean;
  /** The last measured. */
  validation: Validation | null;
  samples: Sample[];
  /** Folder of the last checkpoint. */
  checkpoint: string | null;
  seconds: number;
  /** Where the time went; null before `run()`. */
  times: RunTimeTotals | null;
}

/**
 * Trains a Llama as a configuration says: data, model, optimizer, checkpoints, metrics. Nothing in it is private magic:
 * `trainStep` is the step, and examples/custom-loop.ts writes the same loop by hand.
 *
 *     const trainer = await Trainer.create(config);
 *     for await (const step of trainer.run()) console.log(step.step, step.loss);
 */
export class Trainer {
  readonly config: RunConfig;
  readonly model: Llama;
  readonly optimizer: AdamW;
  readonly tokenizer: Tokenizer;
  /** What it computes on, as the report names it. */
  readonly deviceName: string;
  /** Step that the run went on from; 0 for a new one. */
  readonly startStep: number;
  readonly #mixture: Mixture;
  readonly #heldOut: Mixture | null;
  /** The processes it trains with; null when it is alone. */
  readonly #cluster: Cluster | null;
  readonly #output: OutputFolder | null;
  readonly #writer: CheckpointWriter;
  readonly #saves: boolean;
  readonly #copies = new HostCopies();
  readonly #metrics: MetricsWriter | null;
  readonly #skips: SkipHistory;
  readonly #canary: Canary;
  readonly #schedule: (step: number) => number;
  readonly #notice: (message: string) => void;
  readonly #sideProducts: SideProducts;
  readonly #shardCheck: ShardCheck | null;
  #loader: Loader;
  #step: number;
  #tokens: number;
  #position: number;
  #savedStep = -1;
  #stopping = false;
  #stopRequested = false;
  /** Why the run ends by itself, once it must: what is enqueued by then is done and saved first. */
  #diverged: DivergedError | null = null;
  #sentBytes = 0;
  #running = false;
  #validation: Validation | null = null;
  #validatedStep = -1;
  #samples: Sample[] = [];
  #checkpoint: string | null = null;
  #started = 0;
  #lastEnd = 0;
  #times: RunTimes | null = null;
  /** The result's times once the run has ended. */
  #ended: RunTimeTotals | null = null;

  private constructor(parts: TrainerParts) {
    checkMade(
      "Trainer",
      "Trainer.create()",
      parts?.config !== undefined && parts.progress !== undefined,
    );
    const { config, progress } = parts;
    this.config = config;
    this.model = parts.model;
    this.optimizer = parts.optimizer;
    this.tokenizer = parts.tokenizer;
    this.deviceName = parts.deviceName;
    this.startStep = progress.step;
    this.#mixture = parts.mixture;
    this.#heldOut = parts.heldOut;
    this.#cluster = parts.cluster;
    this.#output = parts.output;
    this.#saves = parts.saves;
    this.#metrics = parts.metrics;
    this.#step = progress.step;
    this.#tokens = progress.tokens;
    this.#position = progress.position;
    this.#skips = new SkipHistory(config.guard, progress.skips);
    this.#canary = new Canary(parts.model.store, config.canary.every);
    this.#schedule = cosineSchedule(config.optimizer);
    this.#checkpoint = parts.checkpoint;
    if (parts.checkpoint) this.#savedStep = progress.step;
    const { keepLast, keepEvery, keepBest } = config.checkpoint;
    const { onNotice } = parts;
    this.#notice = onNotice;
    this.#sideProducts = new SideProducts(onNotice, parts.cluster !== null);
    this.#writer = new CheckpointWriter(config.out, {
      identity: parts.output?.identity ?? null,
      retention: { keepLast, keepBest, ...(keepEvery && { keepEvery }) },
      onSaved: (saved: SavedCheckpoint) => {
        this.#checkpoint = saved.path;
      },
      onFailed: (error, step) =>
        onNotice(`the checkpoint of step ${step} failed: ${error.message}; training goes on`),
      onWarning: onNotice,
    });
    this.#loader = this.#openLoader();
    this.#shardCheck = parts.shardCheck;
    // The run ends as by a signal, all of its processes at the same step; then this one says why.
    if (parts.shardCheck) parts.shardCheck.onFailure = () => this.stop();
  }

  /**
   * Opens data and output folder, builds or loads the model, and is ready to run.
   * @throws the typed error of whatever does not fit, before anything is trained or written
   */
  static async create(config: LoadedConfig, options: TrainerOptions = {}): Promise<Trainer> {
    // Says what is wrong with one that was made by hand, and fills what it leaves out.
    const complete = resolveConfig(config);
    checkObject("Trainer", "options", options);
    checkOptions("Trainer", options, [
      "resume",
      "resumeStrict",
      "allowDataChange",
      "checkpoints",
      "onNotice",
    ]);
    const {
      resume = "auto",
      resumeStrict,
      allowDataChange = false,
      checkpoints,
      onNotice,
    } = options;
    checkString("Trainer", "resume", resume);
    checkBoolean("Trainer", "resumeStrict", resumeStrict ?? false);
    checkBoolean("Trainer", "allowDataChange", allowDataChange);
    checkBoolean("Trainer", "checkpoints", checkpoints ?? true);
    if (onNotice !== undefined) checkFunction("Trainer", "onNotice", onNotice);
    return new Trainer(await startRun(complete, options));
  }

  /** Finishes the running step, saves, and ends `run()`; that of all processes, at the same step. */
  stop(): void {
    this.#stopRequested = true;
    // With others, they must hear of it first: it travels with the next step's loss.
    if (this.#cluster === null) this.#stopping = true;
  }

  /** This process among those that train together; null when it is alone. */
  get world(): Cluster["world"] | null {
    return this.#cluster?.world ?? null;
  }

  /** Bytes that this process has sent to the others by the end of `run()`. */
  get sentBytes(): number {
    return this.#sentBytes;
  }

  /** What carries data between the processes, e.g. `NCCL 2.27.3 from /usr/lib/libnccl.so.2`. */
  get communicationBackend(): string | null {
    return this.#cluster?.backend ?? null;
  }

  /** Frees model and optimizer. Only after `run()` has ended. */
  dispose(): void {
    this.optimizer.dispose();
    this.model.dispose();
  }

  /** Where the run stands; complete when `run()` has ended. */
  get result(): TrainerResult {
    return {
      step: this.#step,
      tokens: this.#tokens,
      finished: this.#step >= this.config.steps,
      validation: this.#validation,
      samples: this.#samples,
      checkpoint: this.#checkpoint,
      seconds: this.#started ? (performance.now() - this.#started) / 1000 : 0,
      times: this.#ended ?? this.#times?.totals ?? null,
    };
  }

  /**
   * Trains to the end, or until `stop()`; yields each step once its figures are known, which is up to two steps after it
   * was enqueued. To leave earlier, call `stop()`: it saves. Leaving the loop by `break` or by an error ends the run where it
   * is, without a save, and other processes that train with this one end with a PeerError.
   * @throws DivergedError after too many skipped steps (the state is saved first); CheckpointError when saves keep
   *   failing, or the run's folder was moved or removed
   */
  async *run(): AsyncGenerator<StepMetrics, void, void> {
    if (this.#running)
      throw new UsageError("[Trainer.run] a trainer runs once: create another to go on");
    this.#running = true;
    this.#started = this.#lastEnd = performance.now();
    const times = new RunTimes();
    this.#times = times;
    const inFlight: RunningStep[] = [];
    let left: Error | null = new UsageError("[Trainer.run] its loop was left before the end");
    try {
      let enqueued = this.#step;
      while (enqueued < this.config.steps && !this.#stopping && !this.#diverged) {
        inFlight.push(await this.#enqueue(enqueued++));
        const pause = this.#pausesAfter(enqueued);
        while (inFlight.length > (pause ? 0 : runAhead - 1)) {
          yield await this.#complete(
            inFlight.shift() as RunningStep,
            pause && inFlight.length === 0,
          );
        }
        // Signals and timers get their turn even when every promise is ready at once.
        await new Promise((resolve) => setImmediate(resolve));
      }
      for (let step = inFlight.shift(); step; step = inFlight.shift())
        yield await this.#complete(step, false);
      await times.pause("save", {}, async () => {
        await this.#save();
        await this.#writer.finish();
      });
      // Nobody leaves before rank 0 has saved: its failure is everybody's (FAULTS P4).
      await this.#cluster?.meet("the end");
      this.#sentBytes = this.#cluster?.sentBytes ?? 0;
      await this.#cluster?.close();
      left = null;
    } catch (error) {
      left = error as Error;
      throw error;
    } finally {
      this.#ended = times.totals;
      times.stop();
      if (left) this.#cluster?.fail(left);
      await this.#close();
    }
    // The last lines of the metrics are written on closing.
    const failure = this.#moved ?? this.#diverged ?? this.#shardCheck?.failure;
    if (failure) throw failure;
  }

  /** Whether the run must come to rest after this many steps: to measure, write samples or save. */
  #pausesAfter(steps: number): boolean {
    const { evaluate, sample, checkpoint } = this.config;
    return (
      steps === this.config.steps ||
      [evaluate.every, sample.every, checkpoint.every].some((every) => due(steps, every))
    );
  }

  async #enqueue(step: number): Promise<RunningStep> {
    const { batch, data, optimizer } = this.config;
    const checked = this.#canary.due(step + 1);
    const running = await trainStep({
      model: this.model,
      optimizer: this.optimizer,
      nextBatch: () => this.#loader.next(),
      documents: data,
      accumulation: batch.accumulation,
      lr: this.#schedule(step),
      clip: optimizer.clip,
      stop: this.#stopRequested,
      ...(checked && { verify: (pass) => this.#canary.verify(step + 1, pass) }),
    });
    return running;
  }

  async #complete(running: RunningStep, atRest: boolean): Promise<StepMetrics> {
    const times = this.#times as RunTimes;
    const { loss, decision: values, stop, at: end, reached } = await running.figures;
    const since = performance.now();
    if (stop) this.#stopping = true;
    const decision = readDecision(values);
    const { batch, data, steps } = this.config;
    const windows = batch.microBatch * batch.accumulation * this.#worldSize;
    const tokens = windows * data.sequenceLength;
    this.#step++;
    this.#tokens += tokens;
    this.#position += windows;
    this.#skips.add(!decision.applied);
    faultPoint("step");
    const stepMs = Math.max(end - this.#lastEnd, 1e-3);
    const metrics: StepMetrics = {
      step: this.#step,
      tokens: this.#tokens,
      loss,
      lr: running.lr,
      gradNorm: decision.gradNorm,
      tokensPerSecond: tokens / (stepMs / 1000),
      stepMs,
      dataWaitMs: running.dataWaitMs,
      deviceBytes: memory(this.model.device).bytes,
      rssBytes: residentBytes(),
      ...times.step(running.clock, reached, this.#loader.hostMs, since),
      ...(decision.reason && { skipped: decision.reason }),
      time: new Date().toISOString(),
    };
    // First of all: whatever comes after the step may fail.
    times.writing(() => this.#metrics?.write(metrics));
    if (atRest) {
      const { evaluate, sample, checkpoint } = this.config;
      const last = this.#step === steps;
      const pauses: PauseMs = {};
      const heldOut = this.#heldOut;
      if (heldOut && (last || due(this.#step, evaluate.every))) {
        const measured = await times.pause("validation", pauses, () =>
          this.#sideProducts.make("validation", metrics.step, true, () => this.#evaluate(heldOut)),
        );
        if (measured) {
          metrics.validation = this.#validation = measured;
          this.#validatedStep = this.#step;
        }
      }
      if (due(this.#step, checkpoint.every)) {
        await times.pause("save", pauses, () => this.#save());
      }
      if (this.#samplesHere && (last || due(this.#step, sample.every))) {
        const divided = this.model.store.parallel?.layout.weights === "part";
        const written = await times.pause("samples", pauses, () =>
          this.#sideProducts.make("samples", metrics.step, divided, () =>
            writeSamples(this.model, this.tokenizer, this.config, metrics.step),
          ),
        );
        metrics.samples = this.#samples = written ?? [];
      }
      if (Object.keys(pauses).length > 0) metrics.pauseMs = pauses;
      if (metrics.validation || metrics.samples || metrics.pauseMs) this.#metrics?.amend(metrics);
    }
    if (this.#moved) throw this.#moved;
    // Not when this line runs: the host may come late, and the next step would look shorter.
    this.#lastEnd = atRest ? performance.now() : end;
    this.#diverged ??= this.#skips.verdict(this.#step);
    return metrics;
  }

  #evaluate(heldOut: Mixture): Promise<Validation> {
    const { evaluate, batch, data } = this.config;
    return validationLoss(this.model, heldOut, {
      batches: evaluate.batches,
      microBatch: batch.microBatch,
      documents: data,
    });
  }

  /**
   * Copies the state to the host and saves it in the background; waits only for a save that is still running. A state
   * that nothing can go on from is not saved, as it would in time be all that is kept: it ends the run.
   */
  async #save(): Promise<void> {
    if (!this.#saves || this.#savedStep === this.#step) return;
    const broken = await nonFiniteGroups(this.model, this.optimizer);
    if (broken.length > 0) {
      this.#diverged = notFinite(this.#step, broken, this.config.out);
      return;
    }
    await this.#writer.ready();
    // Storage may have kept rank 0 waiting for longer than a collective may take.
    await this.#cluster?.meet("a save");
    faultPoint("save");
    const progress = {
      step: this.#step,
      tokens: this.#tokens,
      position: this.#position,
      skips: [...this.#skips.recent],
    };
    const contents = await snapshot({
      config: this.config,
      model: this.model,
      optimizer: this.optimizer,
      tokenizer: this.tokenizer,
      mixture: this.#mixture,
      copies: this.#copies,
      progress,
      validation: this.#validatedStep === this.#step ? this.#validation?.loss : null,
    });
    if (this.#cluster === null || this.#cluster.world.rank === 0) {
      this.#writer.start(this.#step, contents);
    }
    this.#savedStep = this.#step;
    faultPoint("saving");
  }

  /** Rank 0 writes samples; where weights are divided, all ranks compute them together. */
  get #samplesHere(): boolean {
    const { parallel } = this.model.store;
    if (this.config.sample.prompts.length === 0) return false;
    return !parallel || parallel.writes || parallel.layout.weights === "part";
  }

  /** Why nothing can be written any more, once that has been found. */
  get #moved(): MovedFolderError | null {
    return this.#metrics?.moved ?? this.#writer.moved;
  }

  get #worldSize(): number {
    return this.#cluster?.world.worldSize ?? 1;
  }

  #openLoader(): Loader {
    const { batch, data } = this.config;
    return new Loader(this.#mixture, {
      batchSize: batch.microBatch,
      startPosition: this.#position,
      rank: this.#cluster?.world.rank ?? 0,
      worldSize: this.#worldSize,
      prefetch: data.prefetch,
      documentStarts: needStarts(data),
      slowAfterMs: data.slowSeconds * 1000,
      limitMs: data.hangSeconds * 1000,
      onSlow: (waitedMs) =>
        this.#notice(`waiting for data for ${Math.round(waitedMs / 1000)} s: is the storage slow?`),
    });
  }

  async #close(): Promise<void> {
    // A save that is still running ends before the folder is given back; its failure has been told.
    await this.#writer.finish().catch(() => {});
    await this.#shardCheck?.close(this.#loader.hangs);
    await this.#loader.close();
    // A file is closed after its reads.
    if (!this.#loader.hangs) {
      await this.#mixture.close();
      await this.#heldOut?.close();
    }
    await this.#metrics?.close();
    await releaseOutputFolder(this.#output);
  }
}

function notFinite(step: number, groups: readonly string[], out: string): DivergedError {
  const more = groups.length > 3 ? ` and ${groups.length - 3} more groups` : "";
  return new DivergedError(
    `step ${step}: weights or moments are not finite in ${groups.slice(0, 3).join(", ")}${more}: this state is not ` +
      `saved; what was saved before stays in ${out}: go on from there with a lower learning rate`,
  );
}

function due(step: number, every: number): boolean {
  return every > 0 && step % every === 0;
}
