import { checkArray, checkInteger, checkNumber, checkObject, checkString } from "../core/check.js";
import { ArgumentError } from "../core/errors.js";
import type { Tokenizer } from "../data/tokenizer.js";
import { idsWithoutToken } from "../generate/banned-ids.js";
import type { LanguageModel } from "../model/language-model.js";
import { answerLimits } from "./answer-limits.js";
import { type PendingAnswer, writeTokens } from "./answer-writer.js";
import type { Answer, AnswerRequest, OnDone } from "./model-answers.js";
import { StopTexts } from "./stop-texts.js";
import { encode, prefixToken } from "./token-requests.js";
import type { EvalWorld } from "./world.js";

export interface WriteAnswersOptions {
  /** Answers that are written together, or "auto": as many as the free memory holds. */
  batch: number | "auto";
  /** Most tokens of a prompt and its answer. */
  maxLength: number;
  signal?: AbortSignal | undefined;
  onDone?: OnDone | undefined;
  /** Ranks that write the same answers together, because the weights are divided among them. */
  world?: EvalWorld | undefined;
  /** End tokens of the model beside the tokenizer's. */
  endTokens?: readonly number[] | undefined;
}

/** A request whose prompt is known in tokens. */
interface EncodedRequest extends PendingAnswer {
  /** Tokens of the prompt that were cut from the left. */
  readonly cutTokens: number;
}

/**
 * Writes a continuation of each prompt. Greedy answers in f32 equal those of lm-evaluation-harness
 * 0.4.13 with the model type `hf` and a batch of one; a larger batch of the harness differs from it
 * only where a stop text ends within another. A prompt is cut from the left, so that the longest
 * answer fits after it. Tokens that the tokenizer does not have are never chosen.
 * @throws ArgumentError for a request whose longest answer leaves no room for a prompt, and for a
 *   model without a paged cache
 * @throws NonFiniteError if the model's logits give no probabilities
 * @throws OutOfMemoryError if a prompt and its answer do not fit into the memory
 */
export async function writeAnswers(
  model: LanguageModel,
  tokenizer: Tokenizer,
  requests: readonly AnswerRequest[],
  { batch, maxLength, signal, onDone, world, endTokens }: WriteAnswersOptions,
): Promise<Answer[]> {
  for (const [index, request] of requests.entries()) checkRequest(request, index, maxLength);
  if (requests.length === 0) return [];
  signal?.throwIfAborted();
  const pending = await encodeRequests(tokenizer, requests, maxLength, endTokens);
  const longest = pending.reduce(
    (most, { prompt, request }) => Math.max(most, prompt.length + request.maxTokens),
    0,
  );
  const limits = await answerLimits(model, batch, pending.length, longest, world);
  const banned = idsWithoutToken(model, tokenizer);
  await writeTokens(model, pending, { limits, banned, signal, onDone });
  const texts = new Map<EncodedRequest, string>();
  for (const stops of new Set(pending.map((answer) => answer.stops))) {
    const own = pending.filter((answer) => answer.stops === stops);
    const written = await stops.textsOf(own.map(({ tokens }) => tokens));
    for (const [i, answer] of own.entries()) texts.set(answer, written[i] as string);
  }
  return pending.map((answer) => {
    const { tokens, cutTokens } = answer;
    return { text: texts.get(answer) as string, tokens: tokens.length, cutTokens };
  });
}

function checkRequest(request: AnswerRequest, index: number, maxLength: number): void {
  const op = "answers";
  const name = `requests[${index}]`;
  checkObject(op, name, request, "{ prompt, until, maxTokens, temperature, topP, seed }");
  checkString(op, `${name}.prompt`, request.prompt);
  checkArray(op, `${name}.until`, request.until, "an array of strings");
  for (const text of request.until) checkString(op, `a text of ${name}.until`, text);
  checkNumber(op, `${name}.temperature`, request.temperature, { min: 0 });
  checkInteger(op, `${name}.seed`, request.seed, { min: 0 });
  checkInteger(op, `${name}.maxTokens`, request.maxTokens, { min: 1 });
  if (request.maxTokens < maxLength) return;
  throw new ArgumentError(
    `[answers] expected at most ${maxLength - 1} for ${name}.maxTokens, because the model reads ` +
      `${maxLength} tokens and the prompt needs one, got ${request.maxTokens}`,
  );
}

async function encodeRequests(
  tokenizer: Tokenizer,
  requests: readonly AnswerRequest[],
  maxLength: number,
  endTokens: readonly number[] = [],
): Promise<EncodedRequest[]> {
  const encoded = await encode(
    tokenizer,
    requests.map(({ prompt }) => prompt),
    true,
  );
  const known = new Map<string, StopTexts>();
  const pending: EncodedRequest[] = [];
  for (const [index, request] of requests.entries()) {
    const key = JSON.stringify(request.until);
    const stops = known.get(key) ?? (await StopTexts.of(tokenizer, request.until, endTokens));
    known.set(key, stops);
    const ids = encoded[index] as Int32Array;
    const whole = ids.length > 0 ? ids : Int32Array.of(prefixToken(tokenizer));
    const prompt = whole.slice(-(maxLength - request.maxTokens));
    pending.push({ request, stops, tokens: [], prompt, cutTokens: whole.length - prompt.length });
  }
  return pending;
}
