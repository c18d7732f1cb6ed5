import { withIndependentRows } from "../core/independent-rows.js";
import { ready } from "../core/runtime.js";
import { outsideScopes } from "../core/scope.js";
import type { Tensor } from "../core/tensor.js";
import { later, turn } from "../core/turn.js";
import { explainNonFinite } from "../model/finite.js";
import type { LanguageModel } from "../model/language-model.js";
import { createPages } from "./cache-size.js";
import { PagePool } from "./page-pool.js";
import { RecordedSteps } from "./recorded-steps.js";
import { Scheduler } from "./scheduler.js";
import type { ChosenToken, Sequence } from "./sequence.js";
import { Slots } from "./slots.js";
import { type EngineParts, type EngineStep, enqueueStep } from "./step-batch.js";
import { StepResults } from "./step-results.js";
import { paddedRows } from "./step-sizes.js";

/** Figures of an engine at one moment. */
export interface EngineState {
  /** Answers that are being written. */
  running: number;
  /** Answers that wait for room. */
  waiting: number;
  /** Pages of the cache, and those of them that no answer holds. */
  pages: number;
  freePages: number;
  /** Tokens of a page. */
  pageSize: number;
  /** Since the engine's start: prompt tokens computed, prompt tokens shared, tokens written. */
  promptTokens: number;
  sharedTokens: number;
  writtenTokens: number;
  /** Steps of the model, and those of them that were replays of a recorded step. */
  steps: number;
  recordedSteps: number;
}

/** Sizes of a loop's cache and of its steps. */
export interface StepLoopOptions {
  /** Pages of the cache, tokens of a page, and pages of the longest sequence. */
  pages: number;
  pageSize: number;
  mostPages: number;
  /** Sequences that run at once. */
  maxBatch: number;
  /** Prompt tokens that one step computes. */
  promptTokens: number;
  /** Whether texts that begin alike share the work. */
  prefixCache: boolean;
  /** Ids that no sequence may have. */
  banned: readonly number[];
  /** Whether a row's products have the same bits for any number of rows. Default: false. */
  independentRows?: boolean;
  /** Whether steps are filled up to a few sizes. Default: on a GPU. */
  pads?: boolean;
  /**
   * Called after each step with the sequences that got a token and go on, and awaited before the
   * step after the next one begins. It may finish sequences: the ends of some answers take the host
   * time to find.
   */
  afterStep?: ((sequences: readonly Sequence[]) => Promise<void>) | undefined;
}

/**
 * Runs steps of a model as long as a sequence is left: the part of an engine that knows tokens and
 * no text. While the device computes a step, the host handles the results of the step before.
 */
export class StepLoop {
  readonly model: LanguageModel;
  readonly #pool: PagePool;
  readonly #layers: readonly Tensor[];
  readonly #scheduler: Scheduler;
  readonly #slots: Slots;
  readonly #results: StepResults;
  readonly #recorded: RecordedSteps;
  readonly #sparePage: number | null;
  readonly #prefixCache: boolean;
  readonly #afterStep: StepLoopOptions["afterStep"];
  readonly #independentRows: boolean;
  /** Version of the weights that the remembered pages were computed with. */
  #weights: number;
  #loop: Promise<void> | null = null;
  #closed = false;
  /** The pending tokens of each step's rows when it began. */
  readonly #pendings = new WeakMap<EngineStep, Sequence["pending"][]>();
  readonly #inSlots = new Set<Sequence>();
  #counts = { promptTokens: 0, writtenTokens: 0, steps: 0, recordedSteps: 0 };

  /** @throws ArgumentError for a model without a paged cache */
  constructor(model: LanguageModel, options: StepLoopOptions) {
    const { pages, pageSize, maxBatch, promptTokens, prefixCache, banned, mostPages } = options;
    this.model = model;
    this.#prefixCache = prefixCache;
    this.#afterStep = options.afterStep;
    this.#independentRows = options.independentRows ?? false;
    this.#pool = new PagePool(pages, pageSize);
    const { device } = model;
    const { pads = device.type !== "cpu" } = options;
    // One more page is that of rows without a sequence.
    this.#sparePage = pads ? pages : null;
    this.#layers = outsideScopes(() => createPages(model, pages + (pads ? 1 : 0), pageSize));
    this.#scheduler = new Scheduler(this.#pool, { maxBatch, promptTokens });
    this.#slots = new Slots(model, maxBatch, banned);
    this.#results = new StepResults(paddedRows(maxBatch), device);
    this.#recorded = new RecordedSteps(model, this.#layers, this.#slots, this.#results, {
      sparePage: this.#sparePage,
      mostPages,
    });
    this.#weights = this.#weightsVersion;
  }

  get state(): EngineState {
    const { count, free, size } = this.#pool;
    const { running, waiting, sharedTokens } = this.#scheduler;
    return {
      running: running.length,
      waiting,
      pages: count,
      freePages: free,
      pageSize: size,
      sharedTokens,
      ...this.#counts,
    };
  }

  /** Whether steps are on their way. */
  get busy(): boolean {
    return this.#loop !== null;
  }

  /** Adds a sequence to the queue. `wake` starts it. */
  add(sequence: Sequence): void {
    this.#scheduler.add(sequence);
  }

  /** Waits until no sequence is left. */
  async idle(): Promise<void> {
    // Requests that came while the loop ended have begun another one.
    while (this.#loop) await this.#loop;
  }

  /** Ends all sequences with an error. No step begins after. */
  close(error: unknown): void {
    this.#closed = true;
    this.#failAll(error);
  }

  /** Frees the cache. No step may be on its way. */
  free(): void {
    this.#recorded.dispose();
    for (const layer of this.#layers) layer.dispose();
    this.#slots.dispose();
    this.#results.dispose();
  }

  /** Grows with each change of a weight. The weights of a group share their memory. */
  get #weightsVersion(): number {
    return this.model.store.groups.reduce(
      (sum, { entries: [first] }) => sum + (first?.parameter.tensor.memory.version ?? 0),
      0,
    );
  }

  /** Runs steps until all sequences have ended. */
  wake(): void {
    this.#loop ??= later(
      this.#run()
        // Nothing can be computed, for example because the model has been disposed of.
        .catch((error) => this.#failAll(error))
        .finally(() => {
          this.#loop = null;
          // Requests may have come while the loop ended, and a step that could not begin leaves
          // the others.
          const left = this.#scheduler.all().some(({ done }) => !done);
          if (left && !this.#closed) this.wake();
        }),
    );
  }

  #failAll(error: unknown): void {
    for (const sequence of this.#scheduler.all()) sequence.fail(error);
  }

  /** Runs steps until no answer is left. The next step is enqueued before the last one's results are read. */
  async #run(): Promise<void> {
    let running: EngineStep | null = null;
    // Requests of one turn of the event loop begin in one step.
    await turn();
    for (;;) {
      const next: EngineStep | null = this.#enqueue();
      if (running) await this.#finish(running);
      else if (!next) return;
      running = next;
    }
  }

  #enqueue(): EngineStep | null {
    if (this.#weightsVersion !== this.#weights) {
      this.#weights = this.#weightsVersion;
      this.#forgetAll();
    }
    const spans = this.#scheduler.next();
    if (spans.length === 0) return null;
    this.#leaveSlots();
    try {
      for (const { sequence } of spans) {
        this.#slots.enter(sequence);
        if (sequence.slot !== null) this.#inSlots.add(sequence);
      }
      const step = this.#independentRows
        ? withIndependentRows(() => enqueueStep(this.#parts, spans))
        : enqueueStep(this.#parts, spans);
      for (const { sequence, from, to } of spans) {
        if (from < sequence.promptLength)
          this.#counts.promptTokens += Math.min(to, sequence.promptLength) - from;
        sequence.computed = to;
        if (this.#prefixCache) this.#remember(sequence);
      }
      for (const [row, { sequence }] of step.drawing.entries()) sequence.pending = { row };
      this.#pendings.set(
        step,
        step.drawing.map(({ sequence }) => sequence.pending),
      );
      this.#counts.steps++;
      if (step.recorded) this.#counts.recordedSteps++;
      return step;
    } catch (error) {
      for (const { sequence } of spans) sequence.fail(error);
      return null;
    }
  }

  get #parts(): EngineParts {
    return {
      model: this.model,
      layers: this.#layers,
      slots: this.#slots,
      results: this.#results,
      recorded: this.#recorded,
      sparePage: this.#sparePage,
    };
  }

  /** Frees the slots of sequences that no longer run. */
  #leaveSlots(): void {
    for (const sequence of this.#inSlots) {
      if (this.#scheduler.running.includes(sequence)) continue;
      this.#slots.leave(sequence);
      this.#inSlots.delete(sequence);
    }
  }

  /** Tells the pool of pages that are full of known tokens. */
  #remember(sequence: Sequence): void {
    const { tokens, pages } = sequence;
    const full = Math.floor(Math.min(sequence.computed, tokens.length) / this.#pool.size);
    for (; sequence.remembered < full; sequence.remembered++) {
      this.#pool.remember(tokens, pages, sequence.remembered);
    }
  }

  /** Forgets all contents of pages, also those of texts that are partly computed. */
  #forgetAll(): void {
    this.#pool.forgetAll();
    for (const sequence of this.#scheduler.running) {
      if (sequence.computed > 0) sequence.remembered = Number.POSITIVE_INFINITY;
    }
  }

  async #finish(step: EngineStep): Promise<void> {
    const pendings = this.#pendings.get(step) ?? [];
    try {
      const tokens = await step.tokens;
      for (const [row, { sequence }] of step.drawing.entries()) {
        if (sequence.pending === pendings[row]) sequence.pending = null;
        if (sequence.done) continue;
        this.#counts.writtenTokens++;
        sequence.accept(tokens[row] as ChosenToken);
      }
      const left = step.drawing.flatMap(({ sequence }) => (sequence.done ? [] : [sequence]));
      if (this.#afterStep && left.length > 0) await this.#afterStep(left);
    } catch (error) {
      const reason = await explainNonFinite(this.model, error).catch((explained) => explained);
      for (const sequence of this.#scheduler.all()) {
        if (sequence.computed > 0) sequence.fail(reason);
      }
      this.#forgetAll();
    }
    // Without results to wait for, the host must not run far ahead of the device.
    if (step.drawing.length === 0) await ready(this.model.device);
  }
}
