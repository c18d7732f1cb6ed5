import type { AnswerPart } from "../generate/answer.js";
import type { AnswerOptions } from "../generate/engine.js";
import type { ServerContext } from "./context.js";

/** Tokens of a request, as `usage` tells them. */
export interface TokenUsage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
}

/**
 * Milliseconds between two events of a stream, at least. People do not see the difference, and the
 * server writes fewer events than tokens where the model is faster.
 */
const eventMs = 20;

/** Milliseconds between two parts of an answer that is sent as a whole. */
const wholeMs = 200;

/** Answers to the prompts of one request. */
export interface RequestedAnswers {
  route: string;
  prompts: readonly (readonly number[])[];
  options: AnswerOptions & { n: number };
  /** Whether the parts are sent as they come. */
  streams: boolean;
  /** Ends all answers, for example because the client has gone. */
  signal: AbortSignal;
  /** When the request came, by `performance.now()`. */
  startMs: number;
  /** Takes a part of the answer `index`; the n answers to a prompt follow each other. */
  onPart: (part: AnswerPart) => Promise<void> | void;
}

/**
 * Writes all answers to a request at once. The first failure ends them all.
 * @throws the engine's error, or the reason of the signal
 */
export async function runAnswers(
  { engine, metrics }: ServerContext,
  { route, prompts, options, streams, signal, startMs, onPart }: RequestedAnswers,
): Promise<TokenUsage> {
  const failed = new AbortController();
  const both = AbortSignal.any([signal, failed.signal]);
  const partMs = streams ? eventMs : wholeMs;
  let written = 0;
  const runOne = async (ids: readonly number[], place: number): Promise<void> => {
    const clocks = Array.from({ length: options.n }, () => metrics.clock(route, startMs));
    for await (const part of engine.generate(ids, { ...options, partMs, signal: both })) {
      written += part.tokens.length;
      clocks[part.index]?.(part.tokens.length);
      await onPart({ ...part, index: place * options.n + part.index });
    }
  };
  const running = prompts.map(async (ids, place) => {
    try {
      await runOne(ids, place);
    } catch (error) {
      failed.abort(error);
      throw error;
    }
  });
  const results = await Promise.allSettled(running);
  if (failed.signal.aborted) throw failed.signal.reason;
  const broken = results.find((result) => result.status === "rejected");
  if (broken) throw broken.reason;
  const prompt = prompts.reduce((sum, ids) => sum + ids.length, 0);
  return {
    prompt_tokens: prompt,
    completion_tokens: written,
    total_tokens: prompt + written,
  };
}
