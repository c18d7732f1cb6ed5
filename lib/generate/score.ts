import { noGrad } from "../core/autograd.js";
import { tensor } from "../core/create.js";
import { NonFiniteError } from "../core/errors.js";
import { outsideScopes, scope } from "../core/scope.js";
import type { Tensor } from "../core/tensor.js";
import { later } from "../core/turn.js";
import { explainNonFinite } from "../model/finite.js";
import type { LanguageModel } from "../model/language-model.js";
import { cast, linear, linearTokenLosses, logSoftmax, slice } from "../ops/index.js";
import { likeliest } from "./likeliest.js";

/** A token of a given text, as the model sees it. */
export interface ScoredToken {
  id: number;
  /** Log-probability in nats after the tokens before it; null for the first token. */
  logprob: number | null;
  /** The likeliest tokens in its place, if they were asked for; none for the first token. */
  top?: readonly { id: number; logprob: number }[];
}

/** Rows of the vocabulary's size that are on the host at once. */
const rowsAtOnce = 64;

/**
 * Log-probabilities of a text's own tokens, in one pass of the model without a cache.
 * @param ids at least one, at most as many as the context holds
 * @param top how many of the likeliest tokens are wanted in each token's place
 * @throws NonFiniteError if the model's logits give no probabilities
 */
export async function scoreTokens(
  model: LanguageModel,
  ids: readonly number[],
  top: number,
): Promise<ScoredToken[]> {
  const [first, ...targets] = ids as [number, ...number[]];
  const scored: ScoredToken[] = [{ id: first, logprob: null }];
  if (targets.length === 0) return scored;
  const hidden = outsideScopes(() => hiddenOf(model, ids.slice(0, -1)));
  try {
    const losses = await readAtOnce(() =>
      linearTokenLosses(
        hidden,
        model.headWeight.tensor,
        tensor(Int32Array.from(targets), { device: model.device }),
      ),
    );
    const wrong = losses.findIndex((loss) => Number.isNaN(loss));
    if (wrong >= 0) {
      const error = new NonFiniteError(
        `[score] the log-probability of token ${wrong + 1} of the text is NaN`,
        { tensors: [] },
      );
      await explainNonFinite(model, error);
    }
    const tops = top > 0 ? await topRows(model, hidden, top) : [];
    for (const [i, id] of targets.entries()) {
      // 0 has two signs, and a loss of 0 is a log-probability of 0.
      const logprob = 0 - (losses[i] as number);
      scored.push(tops[i] ? { id, logprob, top: tops[i] } : { id, logprob });
    }
  } finally {
    hidden.dispose();
  }
  return scored;
}

/** Hidden states (tokens, hidden) of a text, outside of every scope. */
function hiddenOf(model: LanguageModel, ids: readonly number[]): Tensor {
  const { device } = model;
  return noGrad(() => {
    const input = tensor(Int32Array.from(ids), { shape: [1, ids.length], device });
    const hidden = model.withoutFp8(() => model.hidden(input));
    const rows = hidden.view([ids.length, hidden.shape.at(-1) as number]);
    hidden.dispose();
    input.dispose();
    return rows;
  });
}

/** Enqueues work, frees what it made, and waits for its numbers. */
async function readAtOnce(work: () => Tensor): Promise<Float32Array> {
  const reading = outsideScopes(() =>
    noGrad(() => scope(() => ({ values: later(work().toArray()) }))),
  );
  return (await reading.values) as Float32Array;
}

async function topRows(model: LanguageModel, hidden: Tensor, top: number) {
  const [rows = 0] = hidden.shape;
  const { vocabSize } = model.config;
  const found: { id: number; logprob: number }[][] = [];
  for (let from = 0; from < rows; from += rowsAtOnce) {
    const block: [number, number] = [from, Math.min(rows, from + rowsAtOnce)];
    const values = await readAtOnce(() =>
      logSoftmax(cast(linear(slice(hidden, { 0: block }), model.headWeight.tensor), "f32")),
    );
    for (let at = 0; at < values.length; at += vocabSize) {
      found.push(likeliest(values.subarray(at, at + vocabSize), top));
    }
  }
  return found;
}
