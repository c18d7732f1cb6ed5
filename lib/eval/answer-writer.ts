import { Sequence, type SequenceSettings } from "../generate/sequence.js";
import { StepLoop } from "../generate/step-loop.js";
import type { LanguageModel } from "../model/language-model.js";
import { type AnswerLimits, pageSize } from "./answer-limits.js";
import type { AnswerRequest, OnDone } from "./model-answers.js";
import type { StopTexts } from "./stop-texts.js";

/** A request on its way: its prompt's tokens, and its answer. */
export interface PendingAnswer {
  readonly request: AnswerRequest;
  readonly prompt: Int32Array;
  readonly stops: StopTexts;
  /** Tokens so far, the one that ended the answer included. */
  readonly tokens: number[];
}

export interface WriteTokensOptions {
  limits: AnswerLimits;
  /** Ids that no answer may have. */
  banned: readonly number[];
  signal?: AbortSignal | undefined;
  /** Called with the number of answers that have ended. */
  onDone?: OnDone | undefined;
}

/** Tokens that sampling considers, as in the generation of Hugging Face. */
const defaultTopK = 50;

/**
 * Writes answers with an engine: all at once as far as there is room, with the work of shared
 * prompts done once. The device computes the next tokens while the host looks for the ends of the
 * answers. No answer depends on those beside it. The steps depend on the requests alone, so that
 * ranks whose weights are divided make the same ones.
 * @param pending in the order in which they begin; their `tokens` grow
 * @throws NonFiniteError if the model's logits give no probabilities
 */
export async function writeTokens(
  model: LanguageModel,
  pending: readonly PendingAnswer[],
  { limits, banned, signal, onDone }: WriteTokensOptions,
): Promise<void> {
  if (pending.length === 0) return;
  const running = new Map<Sequence, PendingAnswer>();
  const loop = new StepLoop(model, {
    ...limits,
    pageSize,
    prefixCache: true,
    banned,
    afterStep: async (sequences) => {
      const answers = sequences.map((sequence) => running.get(sequence) as PendingAnswer);
      const ended = await endedAnswers(answers);
      for (const [i, sequence] of sequences.entries()) {
        if (ended.has(answers[i] as PendingAnswer)) sequence.finish("stop");
      }
    },
  });
  let abort = (): void => {};
  try {
    await new Promise<void>((resolve, reject) => {
      let next = 0;
      // Answers that have not begun need no memory for their tokens yet.
      const addMore = (): void => {
        while (running.size < 2 * limits.maxBatch && next < pending.length) {
          const answer = pending[next++] as PendingAnswer;
          const sequence: Sequence = new Sequence([...answer.prompt], settingsOf(answer.request), {
            onToken: ({ id }) => {
              answer.tokens.push(id);
              return !answer.stops.isEnd(id);
            },
            onEnd: () => {
              running.delete(sequence);
              addMore();
              try {
                onDone?.(next - running.size);
              } catch (error) {
                reject(error);
              }
              if (running.size === 0) resolve();
            },
            onError: reject,
          });
          running.set(sequence, answer);
          loop.add(sequence);
        }
      };
      abort = () => reject(signal?.reason);
      signal?.addEventListener("abort", abort, { once: true });
      if (signal?.aborted) return abort();
      addMore();
      loop.wake();
    });
  } finally {
    signal?.removeEventListener("abort", abort);
    for (const sequence of running.keys()) sequence.done = true;
    // Steps that are on their way still use the cache.
    await loop.idle();
    loop.free();
  }
}

function settingsOf(request: AnswerRequest): SequenceSettings {
  const { maxTokens, temperature, topP, topK = defaultTopK, seed } = request;
  return {
    maxTokens,
    // The token that ends an answer counts, so the listener finds it.
    ends: new Set(),
    sampling: { temperature, topK, topP, seed },
    bias: null,
    top: 0,
  };
}

/** The answers whose newest token completes one of their stop texts. */
async function endedAnswers(
  answers: readonly PendingAnswer[],
): Promise<ReadonlySet<PendingAnswer>> {
  const ended = new Set<PendingAnswer>();
  for (const stops of new Set(answers.map((answer) => answer.stops))) {
    const own = answers.filter((answer) => answer.stops === stops);
    const reached = await stops.reachedBy(own.map(({ tokens }) => tokens));
    for (const [i, answer] of own.entries()) if (reached[i]) ended.add(answer);
  }
  return ended;
}
