import { MergeQueue } from "./merge-queue.js";
import { PairTable } from "./pair-table.js";
import type { SymbolWords } from "./symbol-words.js";

/** Start and end of `learnMerges`. */
export interface LearnOptions {
  /** Tokens by id that exist before the first merge. The new ones are appended. */
  tokens: string[];
  /** Tokens with a meaning of their own, which no merge may make. */
  reserved: ReadonlySet<string>;
  vocabSize: number;
  minFrequency: number;
  /** Longest token that a merge may make, in symbols. */
  maxTokenLength: number;
  /** Called now and then with the number of tokens; the merges wait for it. */
  onTokens?: (tokens: number) => Promise<void>;
}

/**
 * Byte-pair encoding (Sennrich, Haddow & Birch 2016, arXiv 1508.07909): merges the most frequent pair of
 * neighbours until the vocabulary is full. The merges equal those of `BpeTrainer` in Hugging Face's
 * tokenizers. A merge visits only the words that hold its pair.
 * @returns the merges in order, as pairs of ids
 */
export async function learnMerges(
  words: SymbolWords,
  options: LearnOptions,
): Promise<[left: number, right: number][]> {
  const { tokens, reserved, vocabSize, minFrequency, maxTokenLength, onTokens } = options;
  const idOf = new Map(tokens.map((token, id) => [token, id]));
  const lengths = tokens.map(() => 1);
  const pairs = new PairTable();
  const queue = new MergeQueue();
  const occurrences = countPairs(words, pairs);
  const enqueue = (pair: number, places: ArrayLike<number>): void => {
    const count = pairs.count(pair);
    if (count <= 0) return;
    queue.push({ pair, count, left: pairs.left(pair), right: pairs.right(pair), words: places });
  };
  for (const [pair, places] of occurrences.entries()) enqueue(pair, places);

  const merges: [number, number][] = [];
  for (;;) {
    if (tokens.length >= vocabSize) break;
    const best = queue.pop();
    if (best === undefined) break;
    // Counts in the queue may be out of date.
    const count = pairs.count(best.pair);
    if (best.count !== count) {
      if (count > 0) queue.push({ ...best, count });
      continue;
    }
    if (count < minFrequency) break;
    const { left, right } = best;
    const merged = (tokens[left] as string) + (tokens[right] as string);
    if (reserved.has(merged)) continue;
    let id = idOf.get(merged);
    if (id === undefined) {
      id = tokens.push(merged) - 1;
      idOf.set(merged, id);
      lengths.push((lengths[left] as number) + (lengths[right] as number));
      if (onTokens && tokens.length % 1024 === 0) await onTokens(tokens.length);
    }
    merges.push([left, right]);
    const made = mergeIn(words, best.words, [left, right, id], { pairs, lengths, maxTokenLength });
    for (const [pair, places] of made) enqueue(pair, places);
  }
  return merges;
}

/** Counts the pairs of all words. @returns for each pair the words that hold it */
function countPairs(words: SymbolWords, pairs: PairTable): Int32Array[] {
  const latest: number[] = [];
  const numbers: number[] = [];
  let total = 0;
  for (let word = 0; word < words.size; word++) {
    const symbols = words.symbols(word);
    for (let at = 1; at < symbols.length; at++) {
      const pair = pairs.numberOf(symbols[at - 1] as number, symbols[at] as number);
      pairs.change(pair, words.count(word));
      if (latest[pair] === word) continue;
      latest[pair] = word;
      numbers[pair] = (numbers[pair] ?? 0) + 1;
      total++;
    }
  }
  const all = new Int32Array(total);
  let start = 0;
  const places = numbers.map((number) => {
    const list = all.subarray(start, start + number);
    start += number;
    return list;
  });
  const filled = new Int32Array(pairs.size);
  latest.fill(-1);
  for (let word = 0; word < words.size; word++) {
    const symbols = words.symbols(word);
    for (let at = 1; at < symbols.length; at++) {
      const pair = pairs.numberOf(symbols[at - 1] as number, symbols[at] as number);
      if (latest[pair] === word) continue;
      latest[pair] = word;
      (places[pair] as Int32Array)[filled[pair] as number] = word;
      (filled[pair] as number) += 1;
    }
  }
  return places;
}

/**
 * Replaces a pair by its token in some words and updates the counts of the pairs around.
 * @returns the pairs that have come to be, with the words where
 */
function mergeIn(
  words: SymbolWords,
  places: ArrayLike<number>,
  [left, right, id]: readonly [number, number, number],
  facts: { pairs: PairTable; lengths: readonly number[]; maxTokenLength: number },
): Map<number, number[]> {
  const { pairs, lengths, maxTokenLength } = facts;
  const made = new Map<number, number[]>();
  const room = maxTokenLength - (lengths[id] as number);
  const fits = (neighbour: number): boolean => (lengths[neighbour] as number) <= room;
  for (let index = 0; index < places.length; index++) {
    const word = places[index] as number;
    const symbols = words.symbols(word);
    const count = words.count(word);
    const make = (first: number, second: number): void => {
      const pair = pairs.numberOf(first, second);
      pairs.change(pair, count);
      const list = made.get(pair);
      if (list === undefined) made.set(pair, [word]);
      else if (list[list.length - 1] !== word) list.push(word);
    };
    let to = 0;
    for (let from = 0; from < symbols.length; from++, to++) {
      if (symbols[from] !== left || symbols[from + 1] !== right) {
        symbols[to] = symbols[from] as number;
        continue;
      }
      if (to > 0) {
        const before = symbols[to - 1] as number;
        pairs.change(pairs.numberOf(before, left), -count);
        if (fits(before)) make(before, id);
      }
      from++;
      symbols[to] = id;
      if (from + 1 < symbols.length) {
        const after = symbols[from + 1] as number;
        pairs.change(pairs.numberOf(right, after), -count);
        if (fits(after)) make(id, after);
      }
    }
    words.shorten(word, to);
  }
  return made;
}
