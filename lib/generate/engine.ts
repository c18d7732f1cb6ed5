import type { z } from "zod";
import { loadModel } from "../checkpoint/model.js";
import {
  argumentError,
  checkInstance,
  checkInteger,
  checkObject,
  describe,
} from "../core/check.js";
import type { Device } from "../core/device.js";
import { ArgumentError, QueueFullError } from "../core/errors.js";
import { checkOptionsBy } from "../core/option-problems.js";
import { ready } from "../core/runtime.js";
import { outsideScopes } from "../core/scope.js";
import type { Tensor } from "../core/tensor.js";
import { later, turn } from "../core/turn.js";
import { Tokenizer } from "../data/tokenizer.js";
import { explainNonFinite } from "../model/finite.js";
import { LanguageModel } from "../model/language-model.js";
import { type AnswerPart, AnswerQueue, type CompleteAnswer, listen } from "./answer.js";
import { AnswerText } from "./answer-text.js";
import { pageCount } from "./cache-size.js";
import { answerSchema, type EngineOptions, engineSchema } from "./engine-schema.js";
import { PagePool } from "./page-pool.js";
import { Scheduler } from "./scheduler.js";
import { type ScoredToken, scoreTokens } from "./score.js";
import { type ChosenToken, Sequence, type SequenceSettings } from "./sequence.js";
import { Slots } from "./slots.js";
import { type EngineStep, enqueueStep } from "./step-batch.js";

/** Options of one request. */
export interface AnswerOptions extends z.input<typeof answerSchema> {
  /** Number of answers; answer i has the seed `seed` + i. Default: 1. */
  n?: number;
  /** Ends the answers at once, and frees their memory. */
  signal?: AbortSignal;
}

/** Options of `Engine.open`. */
export interface OpenEngineOptions extends EngineOptions {
  device?: Device;
  /** Dtype of weights and activations. Default: "f32" on a CPU, "bf16" on a GPU. */
  dtype?: "f32" | "bf16";
}

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
  /** Steps of the model. */
  steps: number;
}

/**
 * Writes many answers at once on one device. Texts of different lengths, settings and progress run
 * in one batch over a paged key/value cache; prompts are computed in chunks beside them, and
 * prompts that begin alike share the work. While the device computes a step, the host handles the
 * results of the step before.
 *
 *     const engine = await Engine.open("runs/tiny");
 *     for await (const { text } of engine.generate("Once upon", { stop: ["\n\n"] })) write(text);
 *     engine.dispose();
 */
export class Engine {
  readonly model: LanguageModel;
  readonly tokenizer: Tokenizer;
  /** Longest prompt and answer together, in tokens. */
  readonly maxLength: number;
  readonly #options: z.output<typeof engineSchema>;
  readonly #pool: PagePool;
  readonly #layers: readonly Tensor[];
  readonly #scheduler: Scheduler;
  readonly #slots: Slots;
  readonly #ownsModel: boolean;
  /** Version of the weights that the remembered pages were computed with. */
  #weights: number;
  #loop: Promise<void> | null = null;
  /** Ends when the last prompt has been scored; never rejects. */
  #scoring: Promise<unknown> = Promise.resolve();
  #toScore = 0;
  #disposed = false;
  #counts = { promptTokens: 0, sharedTokens: 0, writtenTokens: 0, steps: 0 };

  /**
   * An engine of a model that the caller owns. The model may be trained meanwhile; answers then use
   * the weights of the moment.
   * @throws ArgumentError for invalid options, and for a model without a paged cache
   * @throws TokenizerError if the tokenizer does not fit the model
   * @throws OutOfMemoryError if the cache has no room for one text of `maxLength` tokens
   */
  constructor(model: LanguageModel, tokenizer: Tokenizer, options: EngineOptions = {}) {
    const op = "Engine";
    checkInstance(op, "model", model, LanguageModel, "a language model");
    checkInstance(op, "tokenizer", tokenizer, Tokenizer, "a Tokenizer");
    const settings = checkOptionsBy(op, engineSchema, options);
    tokenizer.assertFits({ vocabSize: model.config.vocabSize });
    if (model.store.parallel?.layout.weights === "part") {
      throw new ArgumentError(
        `[${op}] expected a model with whole weights, but each process holds a part`,
      );
    }
    const { type } = model.device;
    const { contextLength } = model.config;
    const { pageSize, maxLength = contextLength } = settings;
    if (pageSize % 32 !== 0) throw argumentError(op, "a multiple of 32", "pageSize", pageSize);
    if (maxLength > contextLength) {
      throw argumentError(
        op,
        `at most the model's context of ${contextLength}`,
        "maxLength",
        maxLength,
      );
    }
    const { maxBatch = type === "cpu" ? 64 : 256, promptTokens = type === "cpu" ? 512 : 2048 } =
      settings;
    this.model = model;
    this.tokenizer = tokenizer;
    this.maxLength = maxLength;
    this.#options = settings;
    this.#ownsModel = ownedModels.has(model);
    const least = Math.ceil(maxLength / pageSize);
    const count = pageCount(model, pageSize, maxBatch * least, least, settings.cacheBytes);
    this.#pool = new PagePool(count, pageSize);
    this.#layers = outsideScopes(() => model.createPages(count, pageSize));
    this.#scheduler = new Scheduler(this.#pool, { maxBatch, promptTokens });
    this.#slots = new Slots(model, maxBatch, bannedIds(model, tokenizer));
    this.#weights = this.#weightsVersion;
  }

  /**
   * An engine of the model in a Hugging Face folder, which it disposes of at its end.
   * @throws CheckpointError, TokenizerError naming the missing, damaged or unsupported part
   */
  static async open(folder: string, options: OpenEngineOptions = {}): Promise<Engine> {
    checkObject("Engine.open", "options", options, "an object of options");
    const { device, dtype = device?.type === "cuda" ? "bf16" : "f32", ...rest } = options;
    checkOptionsBy("Engine.open", engineSchema, rest);
    const tokenizer = await Tokenizer.load(folder);
    const model = await loadModel(folder, { ...(device && { device }), dtype });
    ownedModels.add(model);
    try {
      return new Engine(model, tokenizer, rest);
    } catch (error) {
      model.dispose();
      throw error;
    }
  }

  get state(): EngineState {
    const { count, free, size } = this.#pool;
    const { running, waiting } = this.#scheduler;
    return {
      running: running.length,
      waiting,
      pages: count,
      freePages: free,
      pageSize: size,
      ...this.#counts,
    };
  }

  /**
   * Continues a prompt and yields the text as it becomes final. Ending the iteration early ends the
   * answers.
   * @param prompt a text, or token ids, at least one
   * @throws ArgumentError for invalid options or ids, and for a prompt that leaves no room to answer
   * @throws QueueFullError if `maxQueue` requests wait already
   * @throws NonFiniteError if the model's logits give no probabilities
   */
  async *generate(
    prompt: string | readonly number[],
    options: AnswerOptions = {},
  ): AsyncGenerator<AnswerPart, void, void> {
    const { signal, n, settings, ...rest } = this.#settingsOf(options);
    const ids = await this.encode(prompt);
    signal?.throwIfAborted();
    const queue = new AnswerQueue(n);
    const sequences = this.#submit(ids, n, settings, rest, queue);
    const abort = (): void => {
      for (const sequence of sequences) sequence.done = true;
      queue.fail(signal?.reason);
    };
    signal?.addEventListener("abort", abort, { once: true });
    try {
      for (let part = await queue.next(); part; part = await queue.next()) yield part;
    } finally {
      signal?.removeEventListener("abort", abort);
      // The next step gives back the pages of answers that nobody reads.
      for (const sequence of sequences) sequence.done = true;
      this.#wake();
    }
  }

  /**
   * The whole answer to a prompt; with `n` above 1, the answers in order.
   * @throws as `generate`
   */
  async complete(
    prompt: string | readonly number[],
    options: AnswerOptions & { n?: 1 },
  ): Promise<CompleteAnswer>;
  async complete(
    prompt: string | readonly number[],
    options?: AnswerOptions,
  ): Promise<CompleteAnswer | CompleteAnswer[]>;
  async complete(
    prompt: string | readonly number[],
    options: AnswerOptions = {},
  ): Promise<CompleteAnswer | CompleteAnswer[]> {
    const answers: {
      text: string;
      tokens: ChosenToken[];
      finishReason: CompleteAnswer["finishReason"];
    }[] = [];
    for await (const { index, text, tokens, finishReason } of this.generate(prompt, options)) {
      answers[index] ??= { text: "", tokens: [], finishReason: "stop" };
      const answer = answers[index];
      answer.text += text;
      answer.tokens.push(...tokens);
      if (finishReason) answer.finishReason = finishReason;
    }
    return (options.n ?? 1) === 1 ? (answers[0] as CompleteAnswer) : answers;
  }

  /**
   * The ids of a prompt as the engine reads it: with the beginning-of-text token in front if the
   * tokenizer adds one. An empty text is a new document.
   * @throws ArgumentError for anything but a text or ids of the vocabulary
   */
  async encode(prompt: string | readonly number[]): Promise<number[]> {
    if (typeof prompt === "string") {
      const { tokenizer } = this;
      const ids = [...(await tokenizer.encode(prompt, { bos: tokenizer.addsBos }))];
      return ids.length > 0 ? ids : [tokenizer.bosId ?? tokenizer.eosId];
    }
    if (!Array.isArray(prompt) && !ArrayBuffer.isView(prompt)) {
      throw argumentError("Engine", "a text or an array of token ids", "prompt", prompt);
    }
    const { vocabSize } = this.tokenizer;
    const wrong = prompt.findIndex((id) => !Number.isInteger(id) || id < 0 || id >= vocabSize);
    if (wrong >= 0) {
      throw new ArgumentError(
        `[Engine] expected token ids from 0 to ${vocabSize - 1} in the prompt, got ${describe(prompt[wrong])}`,
      );
    }
    if (prompt.length === 0)
      throw new ArgumentError("[Engine] expected a prompt of at least one token");
    return [...prompt];
  }

  /**
   * Log-probabilities of a prompt's own tokens. Prompts are scored one after the other, each in one
   * pass beside the answers.
   * @param options.top how many of the likeliest tokens are given in each token's place, up to 100
   * @throws ArgumentError for invalid options or ids, and for a prompt longer than `maxLength`
   * @throws QueueFullError if `maxQueue` prompts wait already
   */
  async score(
    prompt: string | readonly number[],
    options: { top?: number; signal?: AbortSignal } = {},
  ): Promise<ScoredToken[]> {
    this.#checkOpen();
    checkObject("Engine", "options", options, "an object of options");
    const { top = 0, signal } = options;
    checkInteger("Engine", "top", top, { min: 0, max: 100 });
    if (signal !== undefined)
      checkInstance("Engine", "signal", signal, AbortSignal, "an AbortSignal");
    const ids = await this.encode(prompt);
    if (ids.length > this.maxLength) {
      throw new ArgumentError(
        `[Engine] expected a prompt of at most ${this.maxLength} tokens, got ${ids.length}`,
      );
    }
    if (this.#toScore > this.#options.maxQueue) {
      throw new QueueFullError(`[Engine] ${this.#toScore} prompts wait already: try again later`);
    }
    this.#toScore++;
    const scored = this.#scoring.then(async () => {
      signal?.throwIfAborted();
      this.#checkOpen();
      return await scoreTokens(this.model, ids, top);
    });
    this.#scoring = scored.catch(() => {}).finally(() => this.#toScore--);
    return await later(scored);
  }

  /** Waits until no answer is being written or waits, and no prompt is scored. */
  async idle(): Promise<void> {
    await this.#loop;
    await this.#scoring;
  }

  /** Ends all answers with an error and frees the cache. The engine cannot be used after. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    const error = new ArgumentError("[Engine] this engine has been disposed of");
    for (const sequence of this.#scheduler.all()) sequence.fail(error);
    const free = (): void => {
      for (const layer of this.#layers) layer.dispose();
      this.#slots.dispose();
      if (this.#ownsModel) this.model.dispose();
    };
    if (this.#loop || this.#toScore > 0) this.idle().then(free, free);
    else free();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #checkOpen(): void {
    if (this.#disposed) throw new ArgumentError("[Engine] this engine has been disposed of");
  }

  get #weightsVersion(): number {
    return this.model.headWeight.tensor.memory.version;
  }

  #settingsOf(options: AnswerOptions) {
    const op = "Engine";
    this.#checkOpen();
    checkObject(op, "options", options, "an object of options");
    const { signal, n = 1, ...given } = options;
    if (!(Number.isSafeInteger(n) && n >= 1 && n <= 128)) {
      throw argumentError(op, "an integer from 1 to 128", "n", n);
    }
    if (signal !== undefined) checkInstance(op, "signal", signal, AbortSignal, "an AbortSignal");
    const settings = checkOptionsBy(op, answerSchema, given);
    const { vocabSize } = this.tokenizer;
    for (const id of [...Object.keys(settings.logitBias ?? {}), ...settings.stopTokens]) {
      if (Number(id) < vocabSize) continue;
      throw new ArgumentError(`[Engine] expected token ids below ${vocabSize}, got ${id}`);
    }
    const bias = settings.logitBias ? this.#denseBias(settings.logitBias) : null;
    return { signal, n, settings, bias, stop: settings.stop };
  }

  #denseBias(given: Readonly<Record<string, number>>): Float32Array {
    const bias = new Float32Array(this.model.config.vocabSize);
    for (const [id, value] of Object.entries(given)) bias[Number(id)] = value;
    return bias;
  }

  #submit(
    ids: readonly number[],
    n: number,
    settings: z.output<typeof answerSchema>,
    { bias, stop }: { bias: Float32Array | null; stop: readonly string[] },
    queue: AnswerQueue,
  ): Sequence[] {
    const room = this.maxLength - ids.length;
    const { maxTokens = Math.max(1, room) } = settings;
    if (room < 1) {
      throw new ArgumentError(
        `[Engine] expected a prompt of fewer than ${this.maxLength} tokens, got ${ids.length}`,
      );
    }
    const { waiting } = this.#scheduler;
    if (waiting + n > this.#options.maxQueue + n - 1 && waiting > 0) {
      throw new QueueFullError(`[Engine] ${waiting} answers wait already: try again later`);
    }
    const { temperature, topK, topP, minP, seed, stopTokens, ignoreEnd, topLogprobs } = settings;
    const { repetitionPenalty, presencePenalty, frequencyPenalty } = settings;
    const ends = new Set([...stopTokens, ...(ignoreEnd ? [] : [this.tokenizer.eosId])]);
    const sequences = Array.from({ length: n }, (_, index) => {
      const own: SequenceSettings = {
        maxTokens: Math.min(maxTokens, room),
        ends,
        sampling: {
          temperature,
          topK,
          topP,
          minP,
          repetitionPenalty,
          presencePenalty,
          frequencyPenalty,
          seed: (seed + index) % Number.MAX_SAFE_INTEGER,
        },
        bias,
        top: topLogprobs,
      };
      const text = new AnswerText(this.tokenizer.decodeStream(), ids, stop);
      const sequence = new Sequence(ids, own, listen(queue, index, text));
      if (own.maxTokens === 0) sequence.finish("length");
      else this.#scheduler.add(sequence);
      return sequence;
    });
    this.#wake();
    return sequences;
  }

  #wake(): void {
    this.#loop ??= later(
      this.#run().finally(() => {
        this.#loop = null;
        // Requests may have come while the loop ended.
        if (this.#scheduler.waiting > 0 && !this.#disposed) this.#wake();
      }),
    );
  }

  /** Runs steps until no answer is left. The next step is enqueued before the last one's results are read. */
  async #run(): Promise<void> {
    let running: EngineStep | null = null;
    // Requests of one turn of the event loop begin in one step.
    await turn();
    for (;;) {
      const next: EngineStep | null = this.#enqueue(running);
      if (running) await this.#finish(running);
      else if (!next) return;
      running = next;
    }
  }

  #enqueue(before: EngineStep | null): EngineStep | null {
    if (this.#weightsVersion !== this.#weights) {
      this.#weights = this.#weightsVersion;
      this.#pool.forgetAll();
    }
    const shared = new Map(
      this.#scheduler.running.map((sequence) => [sequence, sequence.computed]),
    );
    const spans = this.#scheduler.next();
    if (spans.length === 0) return null;
    this.#leaveSlots();
    try {
      for (const { sequence } of spans) this.#slots.enter(sequence);
      const step = enqueueStep(this.model, this.#layers, spans, before, this.#slots);
      for (const { sequence, from, to } of spans) {
        if (!shared.has(sequence)) this.#counts.sharedTokens += from;
        if (from < sequence.promptLength)
          this.#counts.promptTokens += Math.min(to, sequence.promptLength) - from;
        sequence.computed = to;
        if (this.#options.prefixCache) this.#remember(sequence);
      }
      for (const [row, { sequence }] of step.drawing.entries()) sequence.pending = { row };
      this.#pendings.set(
        step,
        step.drawing.map(({ sequence }) => sequence.pending),
      );
      this.#counts.steps++;
      return step;
    } catch (error) {
      for (const { sequence } of spans) sequence.fail(error);
      return null;
    }
  }

  readonly #pendings = new WeakMap<EngineStep, Sequence["pending"][]>();
  readonly #inSlots = new Set<Sequence>();

  /** Frees the slots of sequences that no longer run. */
  #leaveSlots(): void {
    const running = new Set(this.#scheduler.running);
    for (const sequence of this.#inSlots) {
      if (running.has(sequence)) continue;
      this.#slots.leave(sequence);
      this.#inSlots.delete(sequence);
    }
    for (const sequence of running) this.#inSlots.add(sequence);
  }

  /** Tells the pool of pages that are full of known tokens. */
  #remember(sequence: Sequence): void {
    const { tokens, pages } = sequence;
    const full = Math.floor(Math.min(sequence.computed, tokens.length) / this.#pool.size);
    for (; sequence.remembered < full; sequence.remembered++) {
      this.#pool.remember(tokens, pages, sequence.remembered);
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
    } catch (error) {
      const reason = await explainNonFinite(this.model, error).catch((explained) => explained);
      for (const sequence of this.#scheduler.all()) {
        if (sequence.computed > 0) sequence.fail(reason);
      }
      this.#pool.forgetAll();
    } finally {
      step.ids?.dispose();
    }
    // Without results to wait for, the host must not run far ahead of the device.
    if (step.drawing.length === 0) await ready(this.model.device);
  }
}

/** Models that an engine has loaded itself. */
const ownedModels = new WeakSet<LanguageModel>();

/** Rows of the model's vocabulary that the tokenizer lacks. */
function bannedIds(model: LanguageModel, tokenizer: Tokenizer): number[] {
  const banned: number[] = [];
  for (let id = tokenizer.vocabSize; id < model.config.vocabSize; id++) banned.push(id);
  return banned;
}
