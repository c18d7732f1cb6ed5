import type { z } from "zod";
import { loadModel } from "../checkpoint/model.js";
import {
  argumentError,
  checkInstance,
  checkInteger,
  checkIntegers,
  checkObject,
  checkPath,
  describe,
} from "../core/check.js";
import type { Device } from "../core/device.js";
import { ArgumentError, QueueFullError } from "../core/errors.js";
import { checkOptionsBy } from "../core/option-problems.js";
import { later } from "../core/turn.js";
import { Tokenizer } from "../data/tokenizer.js";
import { LanguageModel } from "../model/language-model.js";
import { type AnswerPart, AnswerQueue, type CompleteAnswer, listen } from "./answer.js";
import {
  type AnswerOptions,
  type AnswerRequestSettings,
  readAnswerOptions,
  sequenceSettings,
} from "./answer-request.js";
import { AnswerText, type TextDecoder } from "./answer-text.js";
import { idsWithoutToken } from "./banned-ids.js";
import { pageCount } from "./cache-size.js";
import type { ChatMessage } from "./chat-messages.js";
import { ChatTemplate, noTemplate, type RenderOptions } from "./chat-template.js";
import { endTokens } from "./end-tokens.js";
import { type EngineOptions, engineSchema } from "./engine-schema.js";
import { type ScoredToken, scoreTokens } from "./score.js";
import { type ChosenToken, Sequence } from "./sequence.js";
import { type EngineState, StepLoop } from "./step-loop.js";

export type { AnswerOptions, EngineState };

/** Options of an engine, and the parts of a model that chats and ends of answers need. */
export interface NewEngineOptions extends EngineOptions {
  /** How a chat is written as one text. Default: none, and `chat` is refused. */
  chatTemplate?: ChatTemplate | null;
  /** Tokens that end an answer, beside the tokenizer's end of a text. Default: none. */
  endTokens?: readonly number[];
}

/** Options of `Engine.open`. */
export interface OpenEngineOptions extends EngineOptions {
  /** A template, or the path of its file. Default: that of the folder, if it has one. */
  chatTemplate?: ChatTemplate | string;
  device?: Device;
  /** Dtype of weights and activations. Default: "f32" on a CPU, "bf16" on a GPU. */
  dtype?: "f32" | "bf16";
}

/** Answers to one prompt that are being written. @internal */
export interface OpenAnswers {
  readonly queue: AnswerQueue;
  /** Ends them, whether or not they are complete. */
  readonly end: () => void;
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
  readonly #tokenizer: Tokenizer | null;
  /** Longest prompt and answer together, in tokens. */
  readonly maxLength: number;
  readonly #options: z.output<typeof engineSchema>;
  /** How a chat is written as one text; null if the model has no template. */
  readonly chatTemplate: ChatTemplate | null;
  /** Tokens that end an answer. */
  readonly endTokens: ReadonlySet<number>;
  readonly #loop: StepLoop;
  /** Whether `open` has loaded the model for this engine. */
  #ownsModel = false;
  /** Ends when the last prompt has been scored; never rejects. */
  #scoring: Promise<unknown> = Promise.resolve();
  #toScore = 0;
  #disposed = false;

  /**
   * An engine of a model that the caller owns. The model may be trained meanwhile; answers then use
   * the weights of the moment.
   * @param tokenizer null for an engine of token ids alone: prompts are ids, and answers have no text
   * @throws ArgumentError for invalid options, and for a model without a paged cache
   * @throws TokenizerError if the tokenizer does not fit the model
   * @throws OutOfMemoryError if the cache has no room for one text of `maxLength` tokens
   */
  constructor(model: LanguageModel, tokenizer: Tokenizer | null, options: NewEngineOptions = {}) {
    const op = "Engine";
    checkInstance(op, "model", model, LanguageModel, "a language model");
    if (tokenizer !== null) checkInstance(op, "tokenizer", tokenizer, Tokenizer, "a Tokenizer");
    checkObject(op, "options", options, "an object of options");
    const { chatTemplate = null, endTokens = [], ...given } = options;
    const settings = checkOptionsBy(op, engineSchema, given);
    if (chatTemplate !== null) {
      checkInstance(op, "chatTemplate", chatTemplate, ChatTemplate, "a ChatTemplate");
    }
    const ends = checkIntegers(op, "endTokens", endTokens, "an array of token ids");
    tokenizer?.assertFits({ vocabSize: model.config.vocabSize });
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
    this.#tokenizer = tokenizer;
    this.chatTemplate = chatTemplate;
    this.endTokens = new Set([...(tokenizer ? [tokenizer.eosId] : []), ...ends]);
    this.maxLength = maxLength;
    this.#options = settings;
    const least = Math.ceil(maxLength / pageSize);
    const count = pageCount(model, pageSize, maxBatch * least, least, settings.cacheBytes);
    this.#loop = new StepLoop(model, {
      pages: count,
      pageSize,
      mostPages: least,
      maxBatch,
      promptTokens,
      prefixCache: settings.prefixCache,
      independentRows: settings.independentRows,
      banned: tokenizer ? idsWithoutToken(model, tokenizer) : [],
    });
  }

  /**
   * An engine of the model in a Hugging Face folder, which it disposes of at its end.
   * @throws CheckpointError, TokenizerError naming the missing, damaged or unsupported part
   */
  static async open(folder: string, options: OpenEngineOptions = {}): Promise<Engine> {
    checkPath("Engine.open", "folder", folder);
    checkObject("Engine.open", "options", options, "an object of options");
    const { device, dtype = device?.type === "cuda" ? "bf16" : "f32", ...others } = options;
    const { chatTemplate: template, ...rest } = others;
    checkOptionsBy("Engine.open", engineSchema, rest);
    const tokenizer = await Tokenizer.load(folder);
    const chatTemplate =
      typeof template === "string"
        ? await ChatTemplate.load(template, tokenizer)
        : (template ?? (await ChatTemplate.find(folder, tokenizer)));
    const ends = await endTokens(folder);
    const model = await loadModel(folder, { ...(device && { device }), dtype });
    try {
      const engine = new Engine(model, tokenizer, { ...rest, chatTemplate, endTokens: ends });
      engine.#ownsModel = true;
      return engine;
    } catch (error) {
      model.dispose();
      throw error;
    }
  }

  /** The tokenizer. @throws ArgumentError for an engine of token ids alone */
  get tokenizer(): Tokenizer {
    if (this.#tokenizer) return this.#tokenizer;
    throw new ArgumentError("[Engine] this engine has no tokenizer: it knows token ids alone");
  }

  /** Number of ids that answers may have. */
  get #vocabSize(): number {
    return this.#tokenizer?.vocabSize ?? this.model.config.vocabSize;
  }

  get state(): EngineState {
    return this.#loop.state;
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
    this.#checkOpen();
    const request = this.#request(options);
    const { signal } = request;
    const ids = await this.encode(prompt);
    signal?.throwIfAborted();
    const { queue, end } = this.#begin(ids, request);
    const abort = (): void => {
      end();
      queue.fail(signal?.reason);
    };
    signal?.addEventListener("abort", abort, { once: true });
    try {
      for (let part = await queue.next(); part; part = await queue.next()) yield part;
    } finally {
      signal?.removeEventListener("abort", abort);
      end();
    }
  }

  /**
   * Begins the answers to a prompt for a reader that takes what has come when it has time, without
   * a promise for each token. It does not hear of `options.signal`.
   * @param ids what `encode` returned
   * @param onReady called when there is something to take from the queue
   * @throws as `generate`
   * @internal
   */
  begin(ids: readonly number[], options: AnswerOptions, onReady: () => void): OpenAnswers {
    this.#checkOpen();
    return this.#begin(ids, this.#request(options), onReady);
  }

  /**
   * Answers a chat: continues the text that the model's template makes of the messages with the
   * assistant's next message. `complete(await engine.encodeChat(messages))` gives the whole answer.
   * @throws ArgumentError naming the message and the field that is wrong
   * @throws TokenizerError for a model without a chat template
   * @throws as `generate`
   */
  async *chat(
    messages: readonly ChatMessage[],
    options: AnswerOptions = {},
  ): AsyncGenerator<AnswerPart, void, void> {
    yield* this.generate(await this.encodeChat(messages), options);
  }

  /**
   * The ids of a chat up to the beginning of the assistant's next message. Names of special tokens
   * are these tokens, in the messages as well; the template alone decides on a
   * beginning-of-text token.
   * @throws ArgumentError naming the message and the field that is wrong
   * @throws TokenizerError for a model without a chat template
   */
  async encodeChat(
    messages: readonly ChatMessage[],
    options: RenderOptions = {},
  ): Promise<number[]> {
    const { tokenizer, chatTemplate } = this;
    if (!chatTemplate) throw noTemplate(tokenizer.file);
    const text = chatTemplate.render(messages, options);
    return [...(await tokenizer.encode(text, { specialTokens: "recognize" }))];
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
   * tokenizer adds one. An empty text is a new document, which follows the end of another one.
   * @throws ArgumentError for anything but a text or ids of the vocabulary
   */
  async encode(prompt: string | readonly number[]): Promise<number[]> {
    if (typeof prompt === "string") {
      const { tokenizer } = this;
      const ids = [...(await tokenizer.encode(prompt, { bos: tokenizer.addsBos }))];
      return ids.length > 0 ? ids : [tokenizer.eosId];
    }
    if (!isList(prompt)) {
      throw argumentError("Engine", "a text or an array of token ids", "prompt", prompt);
    }
    const vocabSize = this.#vocabSize;
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
    await this.#loop.idle();
    await this.#scoring;
  }

  /** Ends all answers with an error and frees the cache. The engine cannot be used after. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    const error = new ArgumentError("[Engine] this engine has been disposed of");
    this.#loop.close(error);
    const free = (): void => {
      this.#loop.free();
      if (this.#ownsModel) this.model.dispose();
    };
    if (this.#loop.busy || this.#toScore > 0) this.idle().then(free, free);
    else free();
  }

  /** Ends the engine at the end of a block: `using engine = ...`. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  #checkOpen(): void {
    if (this.#disposed) throw new ArgumentError("[Engine] this engine has been disposed of");
  }

  #request(options: AnswerOptions): AnswerRequestSettings {
    return readAnswerOptions(options, this.#vocabSize, this.model.config.vocabSize);
  }

  #begin(
    ids: readonly number[],
    request: AnswerRequestSettings,
    onReady: (() => void) | null = null,
  ): OpenAnswers {
    const queue = new AnswerQueue(request.n, request.settings.partMs, onReady);
    const sequences = this.#submit(ids, request, queue);
    const end = (): void => {
      // The next step gives back the pages of answers that nobody reads.
      for (const sequence of sequences) sequence.done = true;
      this.#loop.wake();
    };
    return { queue, end };
  }

  #submit(ids: readonly number[], request: AnswerRequestSettings, queue: AnswerQueue): Sequence[] {
    // The engine may have been disposed of while the prompt was encoded.
    this.#checkOpen();
    const room = this.maxLength - ids.length;
    if (room < 1) {
      throw new ArgumentError(
        `[Engine] expected a prompt of fewer than ${this.maxLength} tokens, got ${ids.length}`,
      );
    }
    const { waiting } = this.#loop.state;
    if (waiting >= Math.max(1, this.#options.maxQueue)) {
      throw new QueueFullError(`[Engine] ${waiting} answers wait already: try again later`);
    }
    const sequences = Array.from({ length: request.n }, (_, index) => {
      const own = sequenceSettings(request, index, room, this.endTokens);
      const text = new AnswerText(
        this.#tokenizer?.decodeStream() ?? noText,
        ids,
        request.settings.stop,
      );
      const sequence = new Sequence(ids, own, listen(queue, index, text));
      if (own.maxTokens === 0) sequence.finish("length");
      else this.#loop.add(sequence);
      return sequence;
    });
    this.#loop.wake();
    return sequences;
  }
}

/** Text of an engine of token ids alone. */
const noText: TextDecoder = { push: () => "", end: () => "" };

/** Whether a value is an array of numbers, a typed one included. */
function isList(value: unknown): value is readonly number[] {
  return Array.isArray(value) || (ArrayBuffer.isView(value) && !(value instanceof DataView));
}
