import { noGrad } from "../core/autograd.js";
import { outsideScopes, scope } from "../core/scope.js";
import type { Tensor } from "../core/tensor.js";
import { allowedLogits, type TokenChoice } from "../generate/token-choice.js";
import { explainNonFinite } from "../model/finite.js";
import type { LanguageModel } from "../model/language-model.js";
import { concat, linear, sample } from "../ops/index.js";
import type { AnswerRows } from "./answer-rows.js";
import type { AnswerRequest } from "./model-answers.js";
import type { StopTexts } from "./stop-texts.js";

/** Tokens of all rows whose choice has been enqueued on the device. */
interface ChosenTokens {
  /** (rows) i32, outside of every scope. */
  ids: Tensor;
  /** The ids, once the device has chosen them. */
  values: Promise<ArrayLike<number>>;
}

/** One row of a batch: a request and the tokens of its answer. */
export interface AnswerRow {
  readonly request: AnswerRequest;
  /** Tokens so far, the one that ended the answer included. */
  readonly tokens: number[];
}

/** Tokens that sampling considers, as in the generation of Hugging Face. */
const defaultTopK = 50;

/**
 * Writes the answers of a batch, a token of each row at a time. The device computes the next tokens
 * while the host looks for the ends of the answers. When half of the rows have ended, they leave the
 * batch. A sampled answer does not depend on the other rows, because each has its own random
 * numbers.
 * @param all rows whose requests are alike but for prompt and seed; their `tokens` grow
 * @param texts the rows' prompts; disposed at the end
 */
export async function writeBatch(
  model: LanguageModel,
  all: readonly AnswerRow[],
  texts: AnswerRows,
  choice: TokenChoice,
  stops: StopTexts,
  signal: AbortSignal | undefined,
): Promise<void> {
  const { maxTokens } = (all[0] as AnswerRow).request;
  let rows = all;
  let current: ChosenTokens | null = null;
  let next: ChosenTokens | null = null;
  const ended = new Set<AnswerRow>();
  try {
    current = choose(model, () => texts.start(), rows, choice, 0);
    for (let count = 1; current; count++) {
      const { ids, values } = current;
      const goesOn = count < maxTokens;
      const step = count;
      if (goesOn && texts.cached) {
        next = choose(model, () => texts.advance(ids, null), rows, choice, step);
      }
      const tokens = Array.from(await values.catch((error) => explainNonFinite(model, error)));
      signal?.throwIfAborted();
      const growing = rows.filter((row) => !ended.has(row));
      for (const [place, row] of rows.entries()) {
        if (!ended.has(row)) row.tokens.push(tokens[place] as number);
      }
      const reached = await stops.reachedBy(growing.map((row) => row.tokens));
      for (const [i, row] of growing.entries()) if (reached[i]) ended.add(row);
      const left = rows.flatMap((row, place) => (ended.has(row) ? [] : [place]));
      if (!goesOn || left.length === 0) return;
      if (!texts.cached) {
        next = choose(model, () => texts.advance(ids, tokens), rows, choice, step);
      }
      ids.dispose();
      current = next;
      next = null;
      if (2 * left.length > rows.length) continue;
      texts.keep(left);
      current = keepTokens(current as ChosenTokens, left);
      rows = left.map((place) => rows[place] as AnswerRow);
    }
  } finally {
    current?.ids.dispose();
    next?.ids.dispose();
    texts.dispose();
  }
}

/** Enqueues the choice of each row's next token. `hidden` returns (rows, hidden). */
function choose(
  model: LanguageModel,
  hidden: () => Tensor,
  rows: readonly AnswerRow[],
  choice: TokenChoice,
  offset: number,
): ChosenTokens {
  const ids = outsideScopes(() =>
    noGrad(() =>
      scope(() => {
        const logits = linear(hidden(), model.headWeight.tensor);
        return sampleRows(allowedLogits(logits, choice), rows, offset);
      }),
    ),
  );
  return awaited(ids);
}

/** The result is awaited later or never. Until then a failure must not count as unhandled. */
function awaited(ids: Tensor, values: Promise<ArrayLike<number>> = ids.toArray()): ChosenTokens {
  values.catch(() => {});
  return { ids, values };
}

function sampleRows(logits: Tensor, rows: readonly AnswerRow[], offset: number): Tensor {
  const [first] = rows as readonly [AnswerRow];
  const { temperature, topP, topK = defaultTopK } = first.request;
  if (temperature === 0) return sample(logits, { temperature, seed: 0 });
  const count = logits.shape[1] as number;
  return concat(
    rows.map(({ request: { seed } }, row) =>
      sample(logits.view([1, count], row * count), { temperature, topK, topP, seed, offset }),
    ),
  );
}

/** The tokens of these rows alone. */
function keepTokens({ ids, values }: ChosenTokens, rows: readonly number[]): ChosenTokens {
  const kept = outsideScopes(() =>
    noGrad(() => scope(() => concat(rows.map((row) => ids.view([1], row))))),
  );
  ids.dispose();
  return awaited(
    kept,
    values.then((all) => rows.map((row) => all[row] as number)),
  );
}
