import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { ArgumentError } from "../core/errors.js";
import { prepare } from "../prepare/prepare.js";

/** The tokenizer that synthetic tokenizers are derived from; part of the package. */
const quickstart = fileURLToPath(new URL("../../assets/quickstart/", import.meta.url));

/**
 * Limit of the synthetic text. More would only take longer to prepare; the windows repeat in
 * another order.
 */
const mostTokens = 2 ** 20;

/** Tokens per document. */
const documentTokens = 1000;

interface QuickstartTokenizer {
  model: { vocab: Record<string, number>; merges: [string, string][] };
}

/**
 * xorshift (Marsaglia 2003): random enough that no model can predict the text.
 * @returns a function that gives a number below `count`
 */
function randomNumbers(seed: number): (count: number) => number {
  let state = (Math.imul(seed + 1, 0x9e3779b1) | 1) >>> 0;
  return (count) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % count;
  };
}

/**
 * The quickstart's tokenizer with another number of tokens. It drops the last tokens, or adds
 * tokens made of pairs of existing ones. The process thus holds a tokenizer of that vocabulary
 * size, as in training.
 */
function resized(json: QuickstartTokenizer, vocabSize: number): QuickstartTokenizer {
  const { vocab, merges } = json.model;
  const tokens = Object.entries(vocab).filter(([, id]) => id < vocabSize);
  const kept = new Map(tokens);
  const merged = merges.filter(([a, b]) => [a, b, a + b].every((token) => kept.has(token)));
  // Words of letters only, which the rule for splitting words keeps whole.
  const words = tokens.map(([token]) => token).filter((token) => /^\p{Ll}{2,}$/u.test(token));
  const least = 3 + 256;
  if (vocabSize < least || (kept.size < vocabSize && words.length ** 2 < 4 * vocabSize)) {
    throw new ArgumentError(
      `no tokenizer of ${vocabSize} tokens can be made for synthetic data (from ${least} to ` +
        `${Math.floor(words.length ** 2 / 4)} can): give a data set with --data`,
    );
  }
  for (let pair = 0; kept.size < vocabSize; pair++) {
    const a = words[Math.floor(pair / words.length)] as string;
    const b = words[pair % words.length] as string;
    if (kept.has(a + b)) continue;
    kept.set(a + b, kept.size);
    merged.push([a, b]);
  }
  return { ...json, model: { ...json.model, vocab: Object.fromEntries(kept), merges: merged } };
}

/**
 * Makes a data set of random words like `llamaforge prepare`, with a tokenizer of a given size.
 * @param folder receives `tokenizer/`, the text and `data/`
 * @param tokens approximate number needed; at most 2^20 are made
 * @returns the data set's folder
 */
export async function syntheticDataset(
  folder: string,
  options: { vocabSize: number; tokens: number; validationFraction?: number },
): Promise<string> {
  const { vocabSize, tokens, validationFraction = 0 } = options;
  const tokenizer = join(folder, "tokenizer");
  await mkdir(tokenizer, { recursive: true });
  const read = (name: string) => readFile(join(quickstart, name), "utf8");
  const json = resized(JSON.parse(await read("tokenizer.json")) as QuickstartTokenizer, vocabSize);
  await writeFile(join(tokenizer, "tokenizer.json"), JSON.stringify(json));
  await writeFile(join(tokenizer, "tokenizer_config.json"), await read("tokenizer_config.json"));

  const words = Object.keys(json.model.vocab).filter((token) => !/^<.+>$/.test(token));
  const random = randomNumbers(3407);
  const word = (): string => (words.length > 0 ? words[random(words.length)] : undefined) ?? "a";
  const documents = Math.ceil(Math.min(tokens, mostTokens) / documentTokens) + 1;
  const lines = Array.from({ length: documents }, () =>
    JSON.stringify({ text: Array.from({ length: documentTokens }, word).join(" ") }),
  );
  const text = join(folder, "text.jsonl");
  await writeFile(text, lines.join("\n"));
  const out = join(folder, "data");
  await prepare({ inputs: [text], out, tokenizer, validationFraction });
  return out;
}
