import type { LanguageModel } from "../model/language-model.js";

/**
 * The ids that a model can choose and a tokenizer has no token for.
 * @param known every id of the tokenizer is below `vocabSize`; `gaps` are ids below it without a token
 */
export function idsWithoutToken(
  { config }: LanguageModel,
  { vocabSize, gaps = [] }: { vocabSize: number; gaps?: Iterable<number> },
): number[] {
  const beyond = Math.max(0, config.vocabSize - vocabSize);
  return [...Array.from({ length: beyond }, (_, i) => vocabSize + i), ...gaps];
}
