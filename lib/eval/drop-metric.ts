import { bestAssignment } from "./assignment.js";
import { pythonFloat, pythonFloatText } from "./python-float.js";
import { pythonRegExp } from "./python-regexp.js";
import { pythonSpace, strip } from "./python-text.js";

// The metric of DROP's authors: exact match and F1 over bags of words, for answers of several spans.
// Dua et al. 2019, arXiv 1903.00161.

const articles = pythonRegExp(String.raw`\b(a|an|the)\b`);
const spaces = new RegExp(`${pythonSpace}+`);

/**
 * Exact match and F1 of an answer against one right answer.
 * @param predicted spans of the answer
 * @param gold spans of the right answer, at least one
 */
export function dropScores(
  predicted: readonly string[],
  gold: readonly string[],
): { em: number; f1: number } {
  const [answer, right] = [predicted.map(normalizedSpan), gold.map(normalizedSpan)];
  const isExact =
    answer.length === right.length && sameSets(new Set(answer), new Set(right)) ? 1 : 0;
  const best = alignedScores(answer.map(wordsOf), right.map(wordsOf));
  const mean = best.reduce((sum, score) => sum + score, 0) / best.length;
  return { em: isExact, f1: roundedToHundredths(mean) };
}

/** Words in lower case, without articles and punctuation, and numbers in one form. */
export function normalizedSpan(span: string): string {
  const tokens = span.split(/ |-/).map((token) => {
    const lower = token.toLowerCase();
    const bare = pythonFloat(lower) === null ? lower.replace(/[!-/:-@[-`{-~]/g, "") : lower;
    const number = pythonFloat(bare);
    const text = number === null ? bare : pythonFloatText(number);
    return [...splitWords(text.replace(articles, " "))].join(" ");
  });
  return tokens.filter((token) => token !== "").join(" ");
}

/** `text.split()` of Python. */
function splitWords(text: string): string[] {
  const bare = strip(text);
  return bare === "" ? [] : bare.split(spaces);
}

function wordsOf(normalized: string): ReadonlySet<string> {
  return new Set(splitWords(normalized));
}

/** F1 of each right span with the span that the best assignment gives it. */
function alignedScores(
  predicted: readonly ReadonlySet<string>[],
  gold: readonly ReadonlySet<string>[],
): number[] {
  const scores = gold.map((right) =>
    predicted.map((answer) => (sharesNumber(right, answer) ? f1Of(answer, right) : 0)),
  );
  const best = new Array<number>(Math.max(gold.length, predicted.length)).fill(0);
  for (const [row, column] of bestAssignment(scores).entries()) {
    best[row] = scores[row]?.[column] ?? 0;
  }
  return best;
}

/** Whether the bags share a number, or the right one has none. */
function sharesNumber(gold: ReadonlySet<string>, predicted: ReadonlySet<string>): boolean {
  const numbers = [...gold].filter((word) => pythonFloat(word) !== null);
  return numbers.length === 0 || numbers.some((word) => predicted.has(word));
}

function f1Of(predicted: ReadonlySet<string>, gold: ReadonlySet<string>): number {
  const common = [...gold].filter((word) => predicted.has(word)).length;
  const precision = predicted.size === 0 ? 1 : common / predicted.size;
  const recall = gold.size === 0 ? 1 : common / gold.size;
  return precision === 0 && recall === 0 ? 0 : (2 * precision * recall) / (precision + recall);
}

function sameSets(a: ReadonlySet<string>, b: ReadonlySet<string>): boolean {
  return a.size === b.size && [...a].every((entry) => b.has(entry));
}

/** Rounds as NumPy does: a half goes to the even neighbour. */
function roundedToHundredths(value: number): number {
  const scaled = value * 100;
  const below = Math.floor(scaled);
  const isHalf = scaled - below === 0.5;
  return (isHalf ? below + (below % 2) : Math.round(scaled)) / 100;
}
