import { ArgumentError } from "../core/errors.js";

/** A request that the model cannot be asked. */
export class RequestError extends ArgumentError {
  /**
   * @param problem what is wrong, without the request's number
   * @param request index of the request
   */
  constructor(
    readonly problem: string,
    readonly request: number,
  ) {
    super(`[likelihoods] requests[${request}]: ${problem}`);
  }
}

/** A text whose likelihood after a prompt is asked for. */
export interface LikelihoodRequest {
  prompt: string;
  continuation: string;
}

export interface Likelihood {
  /** Sum over the continuation's tokens, in nats; at most 0. */
  logLikelihood: number;
  /** Whether each token of the continuation is the most likely one. */
  isGreedy: boolean;
  /** Tokens that were cut from the left, because prompt and continuation exceed the context. */
  cutTokens: number;
}

/** A prompt that the model continues. */
export interface AnswerRequest {
  prompt: string;
  /** The answer ends before the first of these texts, and at the end-of-text token. */
  until: readonly string[];
  /** Longest answer, in tokens. */
  maxTokens: number;
  /** 0 chooses the most likely token. */
  temperature: number;
  topP: number;
  /**
   * Sampling takes this many likeliest tokens; 0: all. Default: 50, as in the generation of Hugging
   * Face, which lm-evaluation-harness uses.
   */
  topK?: number;
  /** Seed of this request's random numbers. */
  seed: number;
}

export interface Answer {
  text: string;
  /** Number of tokens that the model wrote. */
  tokens: number;
  /** Tokens of the prompt that were cut from the left. */
  cutTokens: number;
}

/** Called with the number of requests that are done, as they are. */
export type OnDone = (count: number) => void;

/**
 * The three questions that tasks ask of a model. Answers come in the order of the requests. Every
 * method obeys `signal` between two batches.
 */
export interface ModelAnswers {
  /** log p(continuation | prompt) of each request. */
  likelihoods(requests: readonly LikelihoodRequest[], onDone?: OnDone): Promise<Likelihood[]>;
  /**
   * log p(text) of each text, in nats. Windows that do not overlap cover the text; each has the
   * longest context that fits, as lm-evaluation-harness' rolling windows.
   */
  textLikelihoods(texts: readonly string[], onDone?: OnDone): Promise<number[]>;
  /** A continuation of each prompt. */
  answers(requests: readonly AnswerRequest[], onDone?: OnDone): Promise<Answer[]>;
}
