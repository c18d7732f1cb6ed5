import type { Tokenizer } from "../data/tokenizer.js";
import type { LanguageModel } from "../model/language-model.js";
import type { Likelihood, LikelihoodRequest, OnDone } from "./model-answers.js";
import { type ScoreSettings, tokenLikelihoods } from "./token-likelihoods.js";
import { type TokenRequest, textWindows, tokenRequests } from "./token-requests.js";

/**
 * Characters whose requests are scored together. More of them make better batches; the next ones
 * are encoded meanwhile.
 */
const portionChars = 24_000_000;

/** Items in portions of about `portionChars` characters. */
function portions<T>(items: readonly T[], charsOf: (item: T) => number): T[][] {
  const all: T[][] = [];
  let chars = 0;
  for (const item of items) {
    const part = all.at(-1);
    if (part && chars <= portionChars) part.push(item);
    else {
      all.push([item]);
      chars = 0;
    }
    chars += charsOf(item);
  }
  return all;
}

/** Encodes a portion of texts while the one before it is scored. */
async function* encodedAhead<T, Encoded>(
  all: readonly T[][],
  encode: (portion: T[], first: number) => Promise<Encoded>,
): AsyncGenerator<Encoded> {
  let first = 0;
  const start = (portion: T[]): Promise<Encoded> => {
    const encoded = encode(portion, first);
    // It is awaited later, or never. Until then a failure must not count as unhandled.
    encoded.catch(() => {});
    first += portion.length;
    return encoded;
  };
  let next = all[0] && start(all[0]);
  for (let index = 1; next; index++) {
    const encoded = await next;
    const portion = all[index];
    next = portion && start(portion);
    yield encoded;
  }
}

export interface LikelihoodSettings extends ScoreSettings {
  /** Most tokens that the model reads. */
  readonly maxLength: number;
  readonly onDone?: OnDone | undefined;
}

/** Scores requests, and reports how many of all are done. */
class DoneCount {
  #done = 0;
  readonly #onDone: OnDone | undefined;

  constructor(onDone: OnDone | undefined) {
    this.#onDone = onDone;
  }

  add(count: number): void {
    if (count === 0) return;
    this.#done += count;
    this.#onDone?.(this.#done);
  }
}

/**
 * log p(continuation | prompt) of each request, equal to lm-evaluation-harness 0.4.13's
 * `loglikelihood`.
 * @throws ArgumentError for a request without tokens to score, or with more than fit the model
 */
export async function promptLikelihoods(
  model: LanguageModel,
  tokenizer: Tokenizer,
  requests: readonly LikelihoodRequest[],
  settings: LikelihoodSettings,
): Promise<Likelihood[]> {
  const parts = portions(
    requests,
    ({ prompt, continuation }) => prompt.length + continuation.length,
  );
  const encode = (part: LikelihoodRequest[], first: number): Promise<TokenRequest[]> =>
    tokenRequests(tokenizer, part, settings.maxLength, first);
  const done = new DoneCount(settings.onDone);
  const likelihoods: Likelihood[] = [];
  for await (const tokens of encodedAhead(parts, encode)) {
    const { logLikelihoods, greedy } = await tokenLikelihoods(model, tokens, settings, (count) =>
      done.add(count),
    );
    for (const [index, { cutTokens }] of tokens.entries()) {
      const logLikelihood = logLikelihoods[index] as number;
      likelihoods.push({ logLikelihood, isGreedy: greedy[index] === 1, cutTokens });
    }
  }
  return likelihoods;
}

/**
 * log p(text) of each text, equal to lm-evaluation-harness 0.4.13's `loglikelihood_rolling`; 0 for
 * a text without tokens.
 */
export async function windowLikelihoods(
  model: LanguageModel,
  tokenizer: Tokenizer,
  texts: readonly string[],
  settings: LikelihoodSettings,
): Promise<number[]> {
  const parts = portions(texts, (text) => text.length);
  const encode = (part: string[]): Promise<TokenRequest[][]> =>
    textWindows(tokenizer, part, settings.maxLength);
  const sums: number[] = [];
  for await (const windows of encodedAhead(parts, encode)) {
    const requests = windows.flat();
    // Windows of several texts are scored together, so the number of finished texts is estimated.
    let scored = 0;
    const { logLikelihoods } = await tokenLikelihoods(model, requests, settings, (count) => {
      scored += count;
      const texts = Math.floor((windows.length * scored) / requests.length);
      settings.onDone?.(sums.length + texts);
    });
    let at = 0;
    for (const { length } of windows) {
      sums.push(logLikelihoods.subarray(at, at + length).reduce((sum, value) => sum + value, 0));
      at += length;
    }
    if (requests.length === 0) settings.onDone?.(sums.length);
  }
  return sums;
}
