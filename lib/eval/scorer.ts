import {
  checkArray,
  checkFunction,
  checkInstance,
  checkInteger,
  checkIntegers,
  checkObject,
  checkOptions,
  checkString,
} from "../core/check.js";
import { Tokenizer } from "../data/tokenizer.js";
import { LanguageModel } from "../model/language-model.js";
import type {
  Answer,
  AnswerRequest,
  Likelihood,
  LikelihoodRequest,
  ModelAnswers,
  OnDone,
} from "./model-answers.js";
import { writeAnswers } from "./model-generation.js";
import {
  type LikelihoodSettings,
  promptLikelihoods,
  windowLikelihoods,
} from "./model-likelihoods.js";
import { cacheBytesPerToken, passLimits } from "./pass-limits.js";
import { type EvalWorld, gatherTexts } from "./world.js";

export interface ScorerOptions {
  /**
   * Sequences of a forward pass, or "auto": as many tokens as the free memory holds and the device
   * can use. No score depends on it. Default: "auto".
   */
  batch?: number | "auto" | undefined;
  /** Ends the work between two batches, with the signal's reason. */
  signal?: AbortSignal | undefined;
  /**
   * Processes that share the work. All of them ask the same questions in the same order, and get
   * all answers. Sharded weights need it. A signal must then end all of them. Default: this process
   * works alone.
   */
  world?: EvalWorld | undefined;
  /**
   * Most tokens that the model reads; a longer prompt is cut from the left. Default: the model's
   * context length.
   */
  maxLength?: number | undefined;
  /** Ids that end an answer beside the tokenizer's end-of-text token; see `endTokens`. Default: none. */
  endTokens?: readonly number[] | undefined;
}

/**
 * Asks a language model the questions of tasks. Likelihoods equal those of lm-evaluation-harness
 * 0.4.13 on the same model.
 *
 *     const scorer = new Scorer(model, tokenizer);
 *     await scorer.likelihoods([{ prompt: "2 + 2 =", continuation: " 4" }]);
 */
export class Scorer implements ModelAnswers {
  readonly #model: LanguageModel;
  readonly #tokenizer: Tokenizer;
  readonly #batch: number | "auto";
  readonly #maxLength: number;
  readonly #signal: AbortSignal | undefined;
  readonly #world: EvalWorld | undefined;
  readonly #endTokens: readonly number[];
  #cacheBytes: number | null | undefined;

  /**
   * @throws ArgumentError for invalid options
   * @throws TokenizerError if the tokenizer has ids that the model does not
   */
  constructor(model: LanguageModel, tokenizer: Tokenizer, options: ScorerOptions = {}) {
    const op = "Scorer";
    checkInstance(op, "model", model, LanguageModel, "a language model");
    checkInstance(op, "tokenizer", tokenizer, Tokenizer, "a tokenizer");
    checkOptions(op, options, ["batch", "signal", "world", "maxLength", "endTokens"]);
    const { contextLength, vocabSize } = model.config;
    const { batch = "auto", maxLength = contextLength, signal, world, endTokens = [] } = options;
    if (batch !== "auto") checkInteger(op, "batch", batch, { min: 1 });
    checkInteger(op, "maxLength", maxLength, { min: 1, max: contextLength });
    if (signal !== undefined) {
      checkInstance(op, "signal", signal, AbortSignal, "an AbortSignal");
    }
    if (world !== undefined) checkWorld(op, world);
    tokenizer.assertFits({ vocabSize });
    this.#model = model;
    this.#tokenizer = tokenizer;
    this.#batch = batch;
    this.#maxLength = maxLength;
    this.#signal = signal;
    this.#world = world;
    this.#endTokens = checkIntegers(op, "endTokens", endTokens, "an array of token ids");
  }

  /**
   * @throws ArgumentError for a request without tokens to score, or with more than fit the model
   * @throws NonFiniteError if the model's logits give no probabilities
   */
  async likelihoods(
    requests: readonly LikelihoodRequest[],
    onDone?: OnDone,
  ): Promise<Likelihood[]> {
    const op = "likelihoods";
    checkArray(op, "requests", requests, "an array of { prompt, continuation }");
    for (const [index, request] of requests.entries()) {
      checkObject(op, `requests[${index}]`, request, "{ prompt, continuation }");
      checkString(op, `requests[${index}].prompt`, request.prompt);
      checkString(op, `requests[${index}].continuation`, request.continuation);
    }
    const settings = await this.#settings(op, onDone);
    return await promptLikelihoods(this.#model, this.#tokenizer, requests, settings);
  }

  /** @throws NonFiniteError if the model's logits give no probabilities */
  async textLikelihoods(texts: readonly string[], onDone?: OnDone): Promise<number[]> {
    const op = "textLikelihoods";
    checkArray(op, "texts", texts, "an array of strings");
    for (const [index, text] of texts.entries()) checkString(op, `texts[${index}]`, text);
    const settings = await this.#settings(op, onDone);
    return await windowLikelihoods(this.#model, this.#tokenizer, texts, settings);
  }

  async answers(requests: readonly AnswerRequest[], onDone?: OnDone): Promise<Answer[]> {
    checkArray("answers", "requests", requests, "an array of requests");
    const world = this.#world;
    // Sharded weights are gathered by all ranks together, so these write the same answers.
    if (!world || world.worldSize === 1 || this.#model.store.divided) {
      return await this.#write(requests, onDone);
    }
    const { rank, worldSize } = world;
    const mine = await this.#write(
      requests.filter((_, index) => index % worldSize === rank),
      onDone && ((count) => onDone(Math.min(requests.length, count * worldSize))),
    );
    const all = (await gatherTexts(world, JSON.stringify(mine))).map(
      (text) => JSON.parse(text) as Answer[],
    );
    return requests.map(
      (_, index) => all[index % worldSize]?.[Math.floor(index / worldSize)] as Answer,
    );
  }

  #write(requests: readonly AnswerRequest[], onDone: OnDone | undefined): Promise<Answer[]> {
    return writeAnswers(this.#model, this.#tokenizer, requests, {
      batch: this.#batch,
      maxLength: this.#maxLength,
      signal: this.#signal,
      endTokens: this.#endTokens,
      onDone,
      // Ranks that write the same answers make the same batches.
      world: this.#model.store.divided ? this.#world : undefined,
    });
  }

  async #settings(op: string, onDone: OnDone | undefined): Promise<LikelihoodSettings> {
    if (onDone !== undefined) checkFunction(op, "onDone", onDone);
    this.#cacheBytes ??= cacheBytesPerToken(this.#model);
    const cacheBytes = this.#cacheBytes;
    const [maxLength, world, signal] = [this.#maxLength, this.#world, this.#signal];
    // The free memory is read anew, because other work may have taken some.
    const limits = await passLimits(this.#model, this.#batch, cacheBytes, world);
    return { limits, sharesPrefixes: cacheBytes !== null, maxLength, world, signal, onDone };
  }
}

function checkWorld(op: string, world: EvalWorld): void {
  checkObject(op, "world", world, "{ rank, worldSize, gather }");
  checkInteger(op, "world.worldSize", world.worldSize, { min: 1 });
  checkInteger(op, "world.rank", world.rank, { min: 0, max: world.worldSize - 1 });
  checkFunction(op, "world.gather", world.gather);
}
