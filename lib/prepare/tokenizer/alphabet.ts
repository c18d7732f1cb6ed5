import { byteLevelAlphabet, byteTokenName } from "../../data/tokenizer-json.js";
import { SymbolWords } from "./symbol-words.js";
import type { WordCounts } from "./word-counts.js";

/** Tokens before the first merge, and the words in their ids. */
export interface Alphabet {
  tokens: string[];
  words: SymbolWords;
}

/** The alphabet of a byte-level tokenizer: a token for each byte, in the order of its character. */
export function byteLevel(special: readonly string[], counts: WordCounts): Alphabet {
  const bytes = [...byteLevelAlphabet].sort((a, b) => a.charCodeAt(0) - b.charCodeAt(0));
  const tokens = [...special, ...bytes];
  const idOf = byteLevelAlphabet.map((character) => tokens.indexOf(character, special.length));
  const words = new SymbolWords();
  for (const [word, count] of counts.entries()) {
    const symbols = Array.from(Buffer.from(word, "utf8"), (byte) => idOf[byte] as number);
    words.add(symbols, count);
  }
  return { tokens, words };
}

/**
 * The alphabet of a tokenizer with byte fallback: a token for each byte, then one for each character
 * that is frequent enough. A word ends at any other character, whose bytes never merge.
 * @param coverage share of all characters of the text that get a token
 */
export function byteFallback(
  special: readonly string[],
  counts: WordCounts,
  coverage: number,
): Alphabet {
  const characters = chooseCharacters(counts, coverage);
  const bytes = Array.from({ length: 256 }, (_, byte) => byteTokenName(byte));
  const known = new Set([...special, ...bytes]);
  const tokens = [...special, ...bytes, ...characters.filter((one) => !known.has(one))];
  const idOf = new Map(tokens.map((token, id) => [token, id]));
  const words = new SymbolWords();
  for (const [word, count] of counts.entries()) {
    let symbols: number[] = [];
    for (const character of word) {
      const id = idOf.get(character);
      if (id !== undefined) symbols.push(id);
      else {
        words.add(symbols, count);
        symbols = [];
      }
    }
    words.add(symbols, count);
  }
  return { tokens, words };
}

/** Printable ASCII, tab and line break, which get a token even if the text lacks them. */
const always = [0x09, 0x0a, ...Array.from({ length: 0x7f - 0x20 }, (_, at) => 0x20 + at)].map(
  (code) => String.fromCharCode(code),
);

/** The most frequent characters up to a share of the text, in the order of their code points. */
function chooseCharacters(counts: WordCounts, coverage: number): string[] {
  const frequencies = new Map<string, number>();
  let total = 0;
  for (const [word, count] of counts.entries()) {
    for (const character of word) {
      // A lone surrogate is no character.
      if (/^\p{Cs}$/u.test(character)) continue;
      frequencies.set(character, (frequencies.get(character) ?? 0) + count);
      total += count;
    }
  }
  const byCodePoint = (a: string, b: string) =>
    (a.codePointAt(0) as number) - (b.codePointAt(0) as number);
  const ordered = [...frequencies].sort(
    ([a, often], [b, rarely]) => rarely - often || byCodePoint(a, b),
  );
  const chosen = new Set(always);
  let covered = 0;
  for (const [character, count] of ordered) {
    if (covered >= coverage * total) break;
    chosen.add(character);
    covered += count;
  }
  return [...chosen].sort(byCodePoint);
}
