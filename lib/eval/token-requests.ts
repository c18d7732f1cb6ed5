import type { Tokenizer } from "../data/tokenizer.js";
import { type LikelihoodRequest, RequestError } from "./model-answers.js";
import { stripEnd } from "./python-text.js";

/** Tokens whose last ones are scored. The model reads all but the last. */
export interface TokenRequest {
  /** Prompt and continuation, at most one token more than the model reads. */
  readonly tokens: Int32Array;
  /** Number of tokens at the end that are scored, at least 1 and less than all. */
  readonly scored: number;
  /** Tokens that were cut from the left. */
  readonly cutTokens: number;
}

/** The token that stands before a text without a prompt: BOS, or EOS for a tokenizer without one. */
export function prefixToken(tokenizer: Tokenizer): number {
  return tokenizer.bosId ?? tokenizer.eosId;
}

/**
 * Encodes texts as Hugging Face tokenizers do by default: with the names of special tokens in the
 * text recognised, and with BOS in front if the tokenizer adds it and the text does not begin with
 * it.
 * @param special whether BOS is added at all
 */
export async function encode(
  tokenizer: Tokenizer,
  texts: readonly string[],
  special: boolean,
): Promise<Int32Array[]> {
  const encoded = await tokenizer.encodeBatch(texts, { specialTokens: "recognize" });
  const { bosId } = tokenizer;
  if (!special || bosId === null || !tokenizer.addsBos) return encoded;
  const bos = tokenizer.decode([prefixToken(tokenizer)], { specialTokens: "keep" });
  return encoded.map((ids, index) => {
    return (texts[index] as string).startsWith(bos) ? ids : prepend(bosId, ids);
  });
}

function prepend(id: number, ids: Int32Array): Int32Array {
  const whole = new Int32Array(ids.length + 1);
  whole[0] = id;
  whole.set(ids, 1);
  return whole;
}

/** Encodes each different text once. */
async function encodeDistinct(
  tokenizer: Tokenizer,
  texts: readonly string[],
  special: boolean,
): Promise<Map<string, Int32Array>> {
  const distinct = [...new Set(texts)];
  const encoded = await encode(tokenizer, distinct, special);
  return new Map(distinct.map((text, index) => [text, encoded[index] as Int32Array]));
}

/**
 * The tokens of prompts and continuations, as lm-evaluation-harness 0.4.13 finds them. White space
 * at the end of a prompt belongs to the continuation. The continuation's tokens are those of the
 * whole text after as many as the prompt alone has; they follow the prompt's own tokens. Without a prompt, the prefix token stands in
 * its place, unless the continuation begins with it.
 * @param first index of the first request among all, for messages
 * @param maxLength most tokens that the model reads
 * @throws RequestError naming the request whose prompt or continuation has no tokens, or whose
 *   continuation does not fit the model
 */
export async function tokenRequests(
  tokenizer: Tokenizer,
  requests: readonly LikelihoodRequest[],
  maxLength: number,
  first = 0,
): Promise<TokenRequest[]> {
  const split = requests.map(({ prompt, continuation }) => {
    return { prompt: stripEnd(prompt), whole: prompt + continuation, bare: prompt === "" };
  });
  const texts = split.flatMap(({ prompt, whole, bare }) => (bare ? [] : [prompt, whole]));
  const bareTexts = split.flatMap(({ whole, bare }) => (bare ? [whole] : []));
  const encoded = await encodeDistinct(tokenizer, texts, true);
  const bareEncoded = await encodeDistinct(tokenizer, bareTexts, false);
  const prefix = prefixToken(tokenizer);
  return split.map(({ prompt, whole, bare }, index) => {
    const fail = (problem: string): never => {
      const { prompt: before, continuation } = requests[index] as LikelihoodRequest;
      throw new RequestError(
        `expected ${problem}, got the prompt ${shown(before)} and the continuation ` +
          shown(continuation),
        first + index,
      );
    };
    if (bare) {
      const ids = bareEncoded.get(whole) as Int32Array;
      const tokens = ids[0] === prefix ? ids : prepend(prefix, ids);
      if (tokens.length < 2) fail("a continuation of at least one token");
      return cut(tokens, tokens.length - 1, maxLength, fail);
    }
    const all = encoded.get(whole) as Int32Array;
    const before = encoded.get(prompt) as Int32Array;
    if (before.length === 0) fail("a prompt that is empty or has a token besides white space");
    if (before.length >= all.length) fail("a continuation of at least one token");
    // The prompt's last tokens may differ from those of the whole text.
    const tokens = all.slice();
    tokens.set(before);
    return cut(tokens, tokens.length - before.length, maxLength, fail);
  });
}

/** Keeps the last tokens: those that the model reads, and one more that it only predicts. */
function cut(
  tokens: Int32Array,
  scored: number,
  maxLength: number,
  fail: (problem: string) => never,
): TokenRequest {
  if (scored > maxLength) fail(`a continuation of at most ${maxLength} tokens, not ${scored}`);
  const cutTokens = Math.max(0, tokens.length - (maxLength + 1));
  return { tokens: tokens.subarray(cutTokens), scored, cutTokens };
}

function shown(text: string): string {
  return text.length <= 60 ? JSON.stringify(text) : `${JSON.stringify(text.slice(-60))} (its end)`;
}

/**
 * The windows of each text. Each token of a text is scored once. The first window holds the prefix
 * token and the first `maxLength` tokens; a later one scores up to `maxLength` more, and the last
 * one begins earlier, so that its tokens have as long a context as fits.
 */
export async function textWindows(
  tokenizer: Tokenizer,
  texts: readonly string[],
  maxLength: number,
): Promise<TokenRequest[][]> {
  const encoded = await encode(tokenizer, texts, true);
  const prefix = prefixToken(tokenizer);
  return encoded.map((ids) => {
    const tokens = prepend(prefix, ids);
    const windows: TokenRequest[] = [];
    for (let done = 0; done < ids.length; ) {
      const scored = Math.min(ids.length - done, maxLength);
      done += scored;
      // The first window is never longer than maxLength + 1, with the prefix token.
      const start = Math.max(0, done - maxLength);
      windows.push({ tokens: tokens.subarray(start, done + 1), scored, cutTokens: 0 });
    }
    return windows;
  });
}
