import { type LoadedConfig, type RunConfig, resolveConfig } from "../config/index.js";
import {
  checkBoolean,
  checkFunction,
  checkInstance,
  checkObject,
  checkOptions,
  checkString,
} from "../core/check-values.js";
import { DivergedError, UsageError } from "../core/errors.js";
import { faultPoint } from "../core/faults.js";
import { residentBytes } from "../core/machine-limits.js";
import { memory } from "../core/runtime.js";
import type { Tokenizer } from "../data/tokenizer.js";
import type { Cluster } from "../dist/cluster.js";
import type { Fp8Figures, Fp8Monitor } from "../model/fp8-monitor.js";
import type { LanguageModel } from "../model/language-model.js";
import { readDecision } from "../optim/guard.js";
import type { Optimizer } from "../optim/optimizer.js";
import type { PauseMs } from "./device-waits.js";
import type { Sample, StepMetrics, TaskScore, Validation } from "./metrics.js";
import { checkParts, type Progress, type RecipeParts, type TrainerParts } from "./parts.js";
import { checkExtra, checkSamples, checkScores, checkValidation } from "./results-of-parts.js";
import { RunTimes, type RunTimeTotals } from "./run-times.js";
import { SideProducts } from "./side-products.js";
import { SkipHistory } from "./skips.js";
import { startRun, type TrainerOptions } from "./start.js";
import { type RunningStep, trainStep } from "./step.js";

export type { BatchSource, Progress, Saver, StepRecords, TrainerParts } from "./parts.js";
export type { TrainerOptions } from "./start.js";

/**
 * Steps that may be enqueued before the first of them is awaited. The device never idles, and
 * memory stays bounded.
 */
const runAhead = 2;

/**
 * Steps between looks at the tensors in fp8. A look took 15 ms for 1.1 billion parameters and 32,768
 * tokens on an H200: 0.1% of fifty steps of one micro-batch.
 */
const fp8WatchEvery = 50;

/** Outcome of a run. */
export interface TrainerResult {
  step: number;
  tokens: number;
  /** Whether all steps are done; false after `stop()`. */
  finished: boolean;
  /** The last measured validation. */
  validation: Validation | null;
  samples: Sample[];
  /** The last measured scores on tasks. */
  scores: TaskScore[];
  /** Folder of the last checkpoint. */
  checkpoint: string | null;
  seconds: number;
  /** Time spent in each part of the run; null before `run()`. */
  times: RunTimeTotals | null;
}

/** Limits that no number of skipped steps reaches. */
const noLimits = {
  maxConsecutiveSkips: Number.POSITIVE_INFINITY,
  maxSkipsPerWindow: Number.POSITIVE_INFINITY,
  window: 1000,
};

/**
 * Trains a language model, from any model, source of batches, optimizer and schedule.
 * `Trainer.create(config)` builds these parts from a recipe, with checkpoints and records. All
 * parts are public: `trainStep` runs a step, and examples/custom-loop.ts writes the loop by hand.
 *
 *     const trainer = await Trainer.create(config);
 *     for await (const step of trainer.run()) console.log(step.step, step.loss);
 */
export class Trainer {
  readonly model: LanguageModel;
  readonly optimizer: Optimizer;
  /** Step that the run resumed from; 0 for a new run. */
  readonly startStep: number;
  readonly #parts: TrainerParts;
  /** The processes that train together; null for a single process. */
  readonly #cluster: Cluster | null;
  readonly #accumulation: number;
  readonly #skips: SkipHistory;
  readonly #sideProducts: SideProducts;
  #step: number;
  #tokens: number;
  #position: number;
  #savedStep = -1;
  #stopping = false;
  #stopRequested = false;
  #saveRequested = false;
  readonly #abort = (): void => this.stop();
  /** The error that ends the run. The steps already enqueued are completed and saved first. */
  #diverged: DivergedError | null = null;
  #sentBytes = 0;
  #running = false;
  #validation: Validation | null = null;
  #validatedStep = -1;
  #samples: Sample[] = [];
  #scores: TaskScore[] = [];
  #started = 0;
  #lastEnd = 0;
  #times: RunTimes | null = null;
  /** The run's times, set when the run has ended. */
  #ended: RunTimeTotals | null = null;

  /** @throws ArgumentError naming the invalid part */
  constructor(parts: TrainerParts) {
    checkParts(parts);
    const { progress = { step: 0, tokens: 0, position: 0, skips: [] }, guard = noLimits } = parts;
    const { cluster = null, onNotice = console.warn, saver } = parts;
    this.#parts = parts;
    this.model = parts.model;
    this.optimizer = parts.optimizer;
    this.#cluster = cluster;
    this.#accumulation = parts.accumulation ?? 1;
    this.startStep = progress.step;
    this.#step = progress.step;
    this.#tokens = progress.tokens;
    this.#position = progress.position;
    this.#skips = new SkipHistory(guard, progress.skips);
    this.#sideProducts = new SideProducts(onNotice, cluster !== null);
    if (saver?.checkpoint) this.#savedStep = progress.step;
    for (const fallback of progress.fp8Fallbacks ?? []) this.#fp8?.fallBack(fallback);
    // A failed check stops the run like a signal, so that all processes end at the same step. This
    // process then throws the failure.
    if (parts.shardCheck) parts.shardCheck.onFailure = () => this.stop();
    parts.signal?.addEventListener("abort", this.#abort, { once: true });
    if (parts.signal?.aborted) this.stop();
  }

  /**
   * Opens data and output folder, and builds or loads the model. The trainer is then ready to run.
   * @throws a typed error for anything that does not fit, before anything is trained or written
   */
  static async create(config: LoadedConfig, options: TrainerOptions = {}): Promise<Trainer> {
    // Reports errors in a handmade configuration, and fills in its defaults.
    const complete = resolveConfig(config);
    checkObject("Trainer", "options", options);
    checkOptions("Trainer", options, [
      "resume",
      "resumeStrict",
      "allowDataChange",
      "checkpoints",
      ...callbacks,
      "signal",
    ]);
    const { resume = "auto", resumeStrict, allowDataChange = false, checkpoints } = options;
    checkString("Trainer", "resume", resume);
    checkBoolean("Trainer", "resumeStrict", resumeStrict ?? false);
    checkBoolean("Trainer", "allowDataChange", allowDataChange);
    checkBoolean("Trainer", "checkpoints", checkpoints ?? true);
    for (const name of callbacks) {
      if (options[name] !== undefined) checkFunction("Trainer", name, options[name]);
    }
    const { signal } = options;
    if (signal !== undefined)
      checkInstance("Trainer", "signal", signal, AbortSignal, "an AbortSignal");
    return new Trainer(await startRun(complete, options));
  }

  /**
   * The recipe with every default filled in.
   * @throws UsageError for a trainer made of custom parts
   */
  get config(): RunConfig {
    return this.#recipe("config").config;
  }

  /** The recipe's tokenizer. @throws UsageError for a trainer made of custom parts */
  get tokenizer(): Tokenizer {
    return this.#recipe("tokenizer").tokenizer;
  }

  /**
   * The device that the run computes on, as the report names it.
   * @throws UsageError for a trainer made of custom parts
   */
  get deviceName(): string {
    return this.#recipe("deviceName").deviceName;
  }

  /** Finishes the running step, saves, and ends `run()`. All processes end at the same step. */
  stop(): void {
    this.#stopRequested = true;
    // Other processes must hear of the request first. It travels with the next step's loss.
    if (this.#cluster === null) this.#stopping = true;
  }

  /**
   * Saves a checkpoint after the running step, besides those of the recipe.
   * @throws UsageError if several processes train together, or nothing is saved at all
   */
  save(): void {
    if (this.#cluster !== null)
      throw new UsageError("[Trainer.save] several processes save together, at the recipe's steps");
    if (!this.#parts.saver) throw new UsageError("[Trainer.save] this run writes no checkpoints");
    this.#saveRequested = true;
  }

  /** This process among those that train together; null for a single process. */
  get world(): Cluster["world"] | null {
    return this.#cluster?.world ?? null;
  }

  /** Bytes that this process sent to the others; set at the end of `run()`. */
  get sentBytes(): number {
    return this.#sentBytes;
  }

  /**
   * The library that transfers data between the processes, e.g. `NCCL 2.27.3 from
   * /usr/lib/libnccl.so.2`.
   */
  get communicationBackend(): string | null {
    return this.#cluster?.backend ?? null;
  }

  /** Frees model, optimizer and objective. Call it only after `run()` has ended. */
  dispose(): void {
    this.optimizer.dispose();
    this.#parts.objective?.dispose?.();
    this.model.dispose();
  }

  /** The state of the run; complete when `run()` has ended. */
  get result(): TrainerResult {
    return {
      step: this.#step,
      tokens: this.#tokens,
      finished: this.#step >= this.#parts.steps,
      validation: this.#validation,
      samples: this.#samples,
      scores: this.#scores,
      checkpoint: this.#parts.saver?.checkpoint ?? null,
      seconds: this.#started ? (performance.now() - this.#started) / 1000 : 0,
      times: this.#ended ?? this.#times?.totals ?? null,
    };
  }

  /**
   * Trains to the end, or until `stop()`. It yields each step once its results are known, up to two
   * steps after it was enqueued. To end early, call `stop()`, which saves. Leaving the loop by
   * `break` or an error ends the run at once, without a save, and other processes of the run end
   * with a PeerError.
   * @throws DivergedError after too many skipped steps (the state is saved first)
   * @throws CheckpointError if saves keep failing, or if the run's folder was moved or removed
   */
  async *run(): AsyncGenerator<StepMetrics, void, void> {
    if (this.#running)
      throw new UsageError("[Trainer.run] a trainer runs once: create another to go on");
    this.#running = true;
    this.#started = this.#lastEnd = performance.now();
    const times = new RunTimes();
    this.#times = times;
    const { steps, saver, signal, close } = this.#parts;
    const inFlight: RunningStep[] = [];
    let left: Error | null = new UsageError("[Trainer.run] its loop was left before the end");
    try {
      let enqueued = this.#step;
      while (enqueued < steps && !this.#stopping && !this.#diverged) {
        inFlight.push(await this.#enqueue(enqueued++));
        const pause = this.#pausesAfter(enqueued);
        while (inFlight.length > (pause ? 0 : runAhead - 1)) {
          yield await this.#complete(
            inFlight.shift() as RunningStep,
            pause && inFlight.length === 0,
          );
        }
        // Signals and timers get a turn even when every promise is already resolved.
        await new Promise((resolve) => setImmediate(resolve));
      }
      for (let step = inFlight.shift(); step; step = inFlight.shift())
        yield await this.#complete(step, false);
      await times.pause("save", {}, async () => {
        await this.#save();
        await saver?.finish();
      });
      // No process leaves before rank 0 has saved, because a failure of rank 0 must end all of them
      // (FAULTS P4).
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
      // A signal may outlive many trainers.
      signal?.removeEventListener("abort", this.#abort);
      if (left) this.#cluster?.fail(left);
      // A save in progress ends before the folder is released. Its failure has been reported
      // already.
      await saver?.finish().catch(() => {});
      await close?.();
    }
    // Closing writes the last lines of the metrics.
    const failure = this.#failure ?? this.#diverged ?? this.#parts.shardCheck?.failure;
    if (failure) throw failure;
  }

  /** Whether the device must be idle after this many steps, to measure, write samples or save. */
  #pausesAfter(done: number): boolean {
    const { steps, validate, sample, score, saver } = this.#parts;
    return (
      done === steps ||
      this.#saveRequested ||
      [validate?.every, sample?.every, score?.every, saver?.every].some((every = 0) =>
        due(done, every),
      )
    );
  }

  get #fp8(): Fp8Monitor | null {
    return this.model.fp8Monitor;
  }

  /**
   * Whether a step looks at the tensors in fp8: regularly, and after a skipped step. Only steps that
   * are known whenever this step is enqueued may decide, for a resumed run must decide alike.
   */
  #watchesFp8(step: number): boolean {
    const known = step - runAhead - this.#step;
    return step % fp8WatchEvery === 0 || this.#skips.recent.at(known) === 1;
  }

  /** Records a look at the tensors in fp8, and takes a faulty layer out of fp8. */
  #judgeFp8(values: ArrayLike<number> | null): Fp8Figures | null {
    const monitor = this.#fp8;
    if (values === null || monitor === null) return null;
    const fault = monitor.faulty(values);
    if (fault) {
      // Steps that are enqueued already run as they are, in a resumed run too.
      const from = this.#step - 1 + runAhead;
      monitor.fallBack({ layer: fault.layer, from });
      const { onNotice = console.warn } = this.#parts;
      onNotice(
        `step ${this.#step}: ${fault.why}: layer ${fault.layer} computes in bf16 from step ${from + 1} on`,
      );
    }
    return monitor.describe(values);
  }

  async #enqueue(step: number): Promise<RunningStep> {
    const { batches, schedule, clip = 1, objective, masked = false, canary } = this.#parts;
    const fp8 = this.#fp8;
    fp8?.beginStep(step);
    return await trainStep({
      model: this.model,
      optimizer: this.optimizer,
      nextBatch: () => batches.next(),
      ...(objective && { objective }),
      masked,
      accumulation: this.#accumulation,
      lr: schedule(step),
      clip,
      stop: this.#stopRequested,
      ...(fp8 && this.#watchesFp8(step) && { watch: fp8 }),
      ...(canary?.due(step + 1) && { verify: (pass) => canary.verify(step + 1, pass) }),
    });
  }

  async #complete(running: RunningStep, atRest: boolean): Promise<StepMetrics> {
    const times = this.#times as RunTimes;
    const { batches, records, extraMetrics, onStep } = this.#parts;
    const { loss, measured, decision: values, stop, fp8, at: end, reached } = await running.figures;
    const since = performance.now();
    if (stop) this.#stopping = true;
    const decision = readDecision(values);
    const tokens = running.tokens * this.#worldSize;
    this.#step++;
    this.#tokens += tokens;
    this.#position += running.windows * this.#worldSize;
    this.#skips.add(!decision.applied);
    faultPoint("step");
    const stepMs = Math.max(end - this.#lastEnd, 1e-3);
    const figures = this.#judgeFp8(fp8);
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
      ...times.step(running.clock, reached, batches.hostMs ?? 0, since),
      ...(Object.keys(measured).length > 0 && { figures: measured }),
      ...(decision.reason && { skipped: decision.reason }),
      ...(figures && { fp8: figures }),
      ...(extraMetrics && { extra: checkExtra(extraMetrics(this.#step)) }),
      time: new Date().toISOString(),
    };
    // The record is written first, because anything after the step may fail.
    times.writing(() => records?.write(metrics));
    if (atRest) await this.#rest(metrics);
    if (this.#failure) throw this.#failure;
    await onStep?.(metrics);
    // `end` is the device's time. The time of this line may be later, and the next step would look
    // shorter.
    this.#lastEnd = atRest ? performance.now() : end;
    this.#diverged ??= this.#skips.verdict(this.#step);
    return metrics;
  }

  /** Measures, saves, writes samples and scores tasks after a step, if they are due. */
  async #rest(metrics: StepMetrics): Promise<void> {
    const times = this.#times as RunTimes;
    const { step } = metrics;
    const { steps, validate, sample, score, saver, records, onValidation } = this.#parts;
    const last = step === steps;
    const pauses: PauseMs = {};
    if (validate && (last || due(step, validate.every))) {
      const measured = await times.pause("validation", pauses, () =>
        this.#sideProducts.make("validation", step, true, async () =>
          checkValidation(await validate.measure(step)),
        ),
      );
      if (measured) {
        metrics.validation = this.#validation = measured;
        this.#validatedStep = step;
        await onValidation?.(measured, step);
      }
    }
    if (due(step, saver?.every ?? 0) || this.#saveRequested) {
      this.#saveRequested = false;
      await times.pause("save", pauses, () => this.#save());
    }
    if (sample && (last || due(step, sample.every))) {
      const { divided } = this.model.store;
      const written = await times.pause("samples", pauses, () =>
        this.#sideProducts.make("samples", step, divided, async () =>
          checkSamples(await sample.write(step)),
        ),
      );
      metrics.samples = this.#samples = written ?? [];
    }
    if (score && (last || due(step, score.every))) {
      const scored = await times.pause("scores", pauses, () =>
        this.#sideProducts.make("task scores", step, true, async () =>
          checkScores(
            await score.measure(step, (task, error) =>
              this.#sideProducts.tell(`score of ${task}`, step, error),
            ),
          ),
        ),
      );
      if (scored) metrics.scores = this.#scores = scored;
    }
    if (Object.keys(pauses).length > 0) metrics.pauseMs = pauses;
    if (metrics.validation || metrics.samples || metrics.scores || metrics.pauseMs)
      records?.amend(metrics);
  }

  async #save(): Promise<void> {
    const { saver } = this.#parts;
    if (!saver || this.#savedStep === this.#step) return;
    const validation = this.#validatedStep === this.#step ? (this.#validation?.loss ?? null) : null;
    try {
      await saver.save(this.#progress, validation);
      this.#savedStep = this.#step;
    } catch (error) {
      if (!(error instanceof DivergedError)) throw error;
      this.#diverged = error;
    }
  }

  get #progress(): Progress {
    return {
      fp8Fallbacks: this.#fp8?.fallbacks ?? [],
      step: this.#step,
      tokens: this.#tokens,
      position: this.#position,
      skips: this.#skips.recent,
    };
  }

  /** The reason why nothing can be written any more, once it is known. */
  get #failure(): Error | null {
    return this.#parts.records?.moved ?? this.#parts.saver?.failure ?? null;
  }

  get #worldSize(): number {
    return this.#cluster?.world.worldSize ?? 1;
  }

  #recipe(name: keyof RecipeParts): RecipeParts {
    if (this.#parts.recipe) return this.#parts.recipe;
    throw new UsageError(`[Trainer] no ${name}: this trainer was made of parts, not of a recipe`);
  }
}

const callbacks = ["onNotice", "onStep", "onValidation", "onCheckpoint", "extraMetrics"] as const;

function due(step: number, every: number): boolean {
  return every > 0 && step % every === 0;
}
