import { checkInteger } from "../core/check.js";
import { tensor } from "../core/create.js";
import { ArgumentError } from "../core/errors.js";
import { outsideScopes } from "../core/scope.js";
import type { Tensor } from "../core/tensor.js";
import type { LanguageModel } from "../model/language-model.js";
import { slice, where } from "../ops/index.js";

/**
 * The tokens that may be chosen: ids below `count` whose entry in `allowed` (1, count) is not 0.
 */
export interface TokenChoice {
  readonly count: number;
  /** i32, outside of every scope; null if all ids below `count` may be chosen. */
  readonly allowed: Tensor | null;
}

/** Ids that a tokenizer has. */
export interface KnownTokens {
  /** Every id is below this number. Default: the model's. */
  vocabSize?: number | undefined;
  /** Ids below `vocabSize` that are never chosen. */
  never?: Iterable<number> | undefined;
}

/** @throws ArgumentError if no token is left */
export function tokenChoice(
  op: string,
  model: LanguageModel,
  { vocabSize, never = [] }: KnownTokens,
): TokenChoice {
  const { vocabSize: rows } = model.config;
  const count = Math.min(rows, vocabSize ?? rows);
  const allowed = new Int32Array(count).fill(1);
  for (const id of never) {
    checkInteger(op, "an id of never", id, { min: 0 });
    if (id < count) allowed[id] = 0;
  }
  const possible = allowed.reduce((sum, one) => sum + one, 0);
  if (possible === 0) {
    throw new ArgumentError(`[${op}] expected an id to be left, but never has all ${count}`);
  }
  if (possible === count) return { count, allowed: null };
  const mask = () => tensor(allowed, { shape: [1, count], device: model.device });
  return { count, allowed: outsideScopes(mask) };
}

/**
 * The logits of the tokens that may be chosen; -inf for those that may not.
 * @param logits (rows, vocabulary)
 * @returns (rows, count)
 */
export function allowedLogits(logits: Tensor, { count, allowed }: TokenChoice): Tensor {
  const known = count < (logits.shape[1] as number) ? slice(logits, { 1: [0, count] }) : logits;
  return allowed ? where(allowed, known, Number.NEGATIVE_INFINITY) : known;
}
