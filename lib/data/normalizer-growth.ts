import { TokenizerError } from "../core/errors.js";
import { components, type JsonObject, type TokenizerJson } from "./tokenizer-json.js";

/**
 * Largest growth of text by normalization. Real tokenizers double it, or make eight times as much
 * of tabs.
 */
const maxGrowth = 64;

/**
 * Growth is tried on this many copies of a pattern, because the outputs of neighbours may only
 * together form a later step's pattern.
 */
const copies = 8;

/**
 * Refuses normalizers that blow text up. Five steps that each write ten letters for one make
 * 100,000 letters of it, and a page of such text keeps every core busy for hours.
 * @throws TokenizerError
 */
export function checkGrowth({ normalizer, pre_tokenizer }: TokenizerJson, file: string): void {
  const steps = components(normalizer);
  // ByteLevel turns a byte above 127 into a character of two bytes, which the next ByteLevel turns
  // into four, and so on.
  const byteLevels = [...steps, ...components(pre_tokenizer)].filter(
    ({ type }) => type === "ByteLevel",
  ).length;
  const ofBytes = 2 ** Math.max(0, byteLevels - 1);
  if (ofBytes > maxGrowth) fail(file, "pre_tokenizer", ofBytes);
  const replacements = steps.map(replacementOf);
  const expressions = replacements.filter((step) => step?.pattern === null);
  const ofExpressions = expressions.reduce((product, step) => product * (step?.factor ?? 1), 1);
  for (const [place, step] of replacements.entries()) {
    const growth = step === null ? 1 : growthFrom(replacements, place);
    const all = ofBytes * ofExpressions * growth;
    if (all > maxGrowth) fail(file, "normalizer", all);
  }
}

function fail(file: string, field: string, growth: number): never {
  throw new TokenizerError(
    `[tokenizer] ${file}: ${field}: its steps can make text ${growth.toPrecision(3)} times as long or ` +
      `more; expected at most ${maxGrowth} times`,
  );
}

interface Replacement {
  /** The text to be replaced; null for a regular expression. */
  pattern: string | null;
  content: string;
  /** Largest number of characters that a regular expression may make of one. */
  factor: number;
}

function replacementOf(step: JsonObject): Replacement | null {
  const { type, pattern, content } = step;
  if (type !== "Replace" || typeof content !== "string") return null;
  const { String: text } = (pattern ?? {}) as { String?: unknown };
  if (typeof text === "string" && text !== "") {
    return { pattern: text, content, factor: 1 };
  }
  // An expression may match the empty string, and then adds its content at every character.
  return { pattern: null, content, factor: 1 + content.length };
}

/** Factor by which the steps after `place` lengthen that step's replacement. */
function growthFrom(steps: readonly (Replacement | null)[], place: number): number {
  const { pattern, content } = steps[place] as Replacement;
  const start = (pattern ?? content).repeat(copies);
  let text = start;
  for (const step of steps.slice(place)) {
    if (step === null || step.pattern === null) continue;
    text = text.replaceAll(step.pattern, () => step.content);
    if (text.length > maxGrowth * start.length) return text.length / start.length;
  }
  return start.length === 0 ? 1 : text.length / start.length;
}
