import { checkArray, checkInteger, checkNumber, checkObject, checkString } from "../core/check.js";
import { ArgumentError } from "../core/errors.js";
import type { Tokenizer } from "../data/tokenizer.js";
import { type TokenChoice, tokenChoice } from "../generate/token-choice.js";
import type { LanguageModel } from "../model/language-model.js";
import { type AnswerRow, writeBatch } from "./answer-batch.js";
import { CachedRows, WholeRows } from "./answer-rows.js";
import type { Answer, AnswerRequest, OnDone } from "./model-answers.js";
import { cacheBytesPerToken, passLimits } from "./pass-limits.js";
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
}

/** A request on its way: its prompt's tokens, and its answer. */
interface PendingAnswer extends AnswerRow {
  readonly index: number;
  readonly prompt: Int32Array;
  readonly cutTokens: number;
}

/** Most rows of a batch. More do not use the device any better. */
const mostRows = { cpu: 16, cuda: 256 };

/**
 * Writes a continuation of each prompt. Greedy answers in f32 equal those of lm-evaluation-harness
 * 0.4.13 with the model type `hf` and a batch of one; a larger batch of the harness differs from it
 * only where a stop text ends within another. A prompt is cut from the left, so that the longest
 * answer fits after it. Tokens that the tokenizer does not have are never chosen.
 * @throws ArgumentError for a request whose longest answer leaves no room for a prompt
 * @throws NonFiniteError if the model's logits give no probabilities
 */
export async function writeAnswers(
  model: LanguageModel,
  tokenizer: Tokenizer,
  requests: readonly AnswerRequest[],
  { batch, maxLength, signal, onDone, world }: WriteAnswersOptions,
): Promise<Answer[]> {
  for (const [index, request] of requests.entries()) checkRequest(request, index, maxLength);
  const pending = await encodeRequests(tokenizer, requests, maxLength);
  const cacheBytes = cacheBytesPerToken(model);
  const limits = await passLimits(model, batch, cacheBytes, world);
  const cacheTokens = cacheBytes === null ? limits.tokens : limits.cacheTokens;
  const most = Math.min(limits.rows, batch === "auto" ? mostRows[model.device.type] : batch);
  const choice: TokenChoice = tokenChoice("answers", model, { vocabSize: tokenizer.vocabSize });
  const answers: Answer[] = [];
  let done = 0;
  try {
    for (const rows of batchesOf(pending, most, cacheTokens)) {
      signal?.throwIfAborted();
      const stops = await StopTexts.of(tokenizer, (rows[0] as PendingAnswer).request.until);
      const prompts = rows.map(({ prompt }) => prompt);
      const [first] = rows as [PendingAnswer];
      // The last token of an answer is never read.
      const length = first.prompt.length + first.request.maxTokens - 1;
      const texts =
        cacheBytes === null
          ? new WholeRows(model, prompts)
          : new CachedRows(model, prompts, Math.max(1, length), limits.tokens);
      await writeBatch(model, rows, texts, choice, stops, signal);
      const written = await stops.textsOf(rows.map(({ tokens }) => tokens));
      for (const [i, { index, tokens, cutTokens }] of rows.entries()) {
        answers[index] = { text: written[i] as string, tokens: tokens.length, cutTokens };
      }
      done += rows.length;
      onDone?.(done);
    }
  } finally {
    choice.allowed?.dispose();
  }
  return answers;
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
): Promise<PendingAnswer[]> {
  const encoded = await encode(
    tokenizer,
    requests.map(({ prompt }) => prompt),
    true,
  );
  return requests.map((request, index) => {
    const ids = encoded[index] as Int32Array;
    const whole = ids.length > 0 ? ids : Int32Array.of(prefixToken(tokenizer));
    const prompt = whole.slice(-(maxLength - request.maxTokens));
    return { request, tokens: [], index, prompt, cutTokens: whole.length - prompt.length };
  });
}

/**
 * Batches of requests that are answered alike, the longest prompts first.
 * @param most most rows of a batch
 * @param cacheTokens most tokens of a batch, with the padding
 */
function* batchesOf(
  pending: readonly PendingAnswer[],
  most: number,
  cacheTokens: number,
): Generator<PendingAnswer[]> {
  const groups = new Map<string, PendingAnswer[]>();
  for (const answer of pending) {
    const { maxTokens, until, temperature, topP, topK } = answer.request;
    const sampling = temperature === 0 ? [] : [temperature, topP, topK];
    const key = JSON.stringify([maxTokens, until, ...sampling]);
    const group = groups.get(key) ?? [];
    group.push(answer);
    groups.set(key, group);
  }
  for (const group of groups.values()) {
    const sorted = group.toSorted((a, b) => b.prompt.length - a.prompt.length || a.index - b.index);
    for (let start = 0; start < sorted.length; ) {
      const { prompt, request } = sorted[start] as PendingAnswer;
      const fit = Math.floor(cacheTokens / (prompt.length + request.maxTokens));
      const rows = Math.max(1, Math.min(most, fit));
      yield sorted.slice(start, start + rows);
      start += rows;
    }
  }
}
