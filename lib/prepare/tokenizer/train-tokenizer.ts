import { access } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { ArgumentError, DataError, UsageError } from "../../core/errors.js";
import { section } from "../../core/option-kinds.js";
import { optionName, optionValue } from "../../core/option-names.js";
import { checkOptionsBy } from "../../core/option-problems.js";
import { Tokenizer } from "../../data/tokenizer.js";
import { byteTokenName } from "../../data/tokenizer-json.js";
import { selectionOf } from "../readers/documents.js";
import { type FoundInput, findInput } from "../readers/find.js";
import type { Input } from "../readers/input.js";
import { checkTextFields } from "../readers/text-fields.js";
import { byteFallback, byteLevel } from "./alphabet.js";
import { type CountedWords, countWords } from "./count-words.js";
import { learnMerges } from "./learn-merges.js";
import { type TokenizerInput, tokenizerInputSchema, trainTokenizerSchema } from "./schema.js";
import { usualWordLimits } from "./word-counts.js";
import { writeTokenizer } from "./write-tokenizer.js";

/** How far a tokenizer's training is: it reads all text, then it merges. */
export interface TrainTokenizerProgress {
  documents: number;
  /** Stored bytes of input: read so far, and in total. */
  bytes: number;
  totalBytes: number;
  /** UTF-8 bytes of the documents. */
  textBytes: number;
  /** Tokens of the vocabulary so far; 0 while text is read. */
  tokens: number;
}

/** Options of `trainTokenizer` that are not plain values, in addition to those of the schema. */
interface CallOptions {
  /** Files, folders and patterns, as `prepare` reads them. */
  inputs: readonly (string | TokenizerInput)[];
  /** Called as the work proceeds. Default: nothing is called. */
  onProgress?: ((progress: TrainTokenizerProgress) => void) | undefined;
  /** Stops the work. Default: nothing stops it. */
  signal?: AbortSignal | undefined;
}

/** Inputs, output and settings of `trainTokenizer`. */
export interface TrainTokenizerOptions
  extends CallOptions,
    Omit<z.input<typeof trainTokenizerSchema>, keyof CallOptions> {}

/** The tokenizer that `trainTokenizer` made. */
export interface TrainTokenizerResult {
  folder: string;
  /** The tokenizer, loaded from the folder. */
  tokenizer: Tokenizer;
  documents: number;
  /** UTF-8 bytes of the documents. */
  textBytes: number;
  /** Different words that the merges were learned from. */
  words: number;
  merges: number;
  /** Notes for the user that are not errors. */
  warnings: string[];
}

const callSchema = section("a tokenizer's training", {
  ...trainTokenizerSchema.shape,
  inputs: z
    .array(tokenizerInputSchema.meta({ expects: "a path or an input" }))
    .min(1)
    .meta({ description: "what to read", expects: "an array of paths or inputs, at least one" }),
  onProgress: z
    .custom<TrainTokenizerOptions["onProgress"]>((value) => typeof value === "function")
    .meta({ description: "called as the work goes on", expects: "a function" })
    .optional(),
  signal: z
    .instanceof(AbortSignal)
    .meta({ description: "stops the work", expects: "an AbortSignal" })
    .optional(),
});
type Settings = z.output<typeof callSchema>;

/**
 * Trains a byte-pair tokenizer and writes it as Hugging Face does: a folder with tokenizer.json and
 * tokenizer_config.json, which `prepare`, Python's `tokenizers` and `transformers` open.
 *
 * Equal text and options give equal files. The merges are those of `BpeTrainer` in Hugging Face's
 * tokenizers. Text is read in a stream: memory holds the different words, of which the rarest are
 * dropped beyond some four million; a warning then says so.
 *
 * @throws DataError for missing, empty or unreadable text
 * @throws UsageError if the folder holds a tokenizer already, or cannot be written
 * @throws ArgumentError if the vocabulary has no room for the special tokens and the characters
 */
export async function trainTokenizer(
  options: TrainTokenizerOptions,
): Promise<TrainTokenizerResult> {
  const settings = settingsOf(options);
  const { out, type, rule, minFrequency, vocabSize, signal, onProgress } = settings;
  const special = specialTokensOf(settings);
  await checkFolder(out, settings.overwrite);
  const sources: { input: Input; found: FoundInput }[] = [];
  for (const input of settings.inputs) {
    sources.push({ input, found: await findInput(input, new Set(), settings.skipUnreadable) });
  }
  checkTextFields(sources);
  const { invalidUtf8, badRecords } = settings;
  const reading = { invalidUtf8, badRecords };
  const counted = await countWords(sources, rule, reading, usualWordLimits, (progress) => {
    signal?.throwIfAborted();
    onProgress?.({ ...progress, tokens: 0 });
  });
  if (counted.words.size === 0) {
    const paths = settings.inputs.map(({ path }) => path).join(", ");
    throw new DataError(`[trainTokenizer] no text in ${paths}`);
  }
  const coverage = settings.characterCoverage ?? 0.9995;
  const { tokens, words } =
    type === "byte-level"
      ? byteLevel(special, counted.words)
      : byteFallback(special, counted.words, coverage);
  checkRoom(settings, tokens.length, special.length);
  const { documents, bytes, totalBytes, textBytes } = counted;
  const merges = await learnMerges(words, {
    tokens,
    reserved: new Set([...special, ...(type === "byte-level" ? [] : byteTokens)]),
    vocabSize,
    minFrequency,
    maxTokenLength: settings.maxTokenLength ?? Number.POSITIVE_INFINITY,
    onTokens: async (made) => {
      onProgress?.({ documents, bytes, totalBytes, textBytes, tokens: made });
      await new Promise((resolve) => setImmediate(resolve));
      signal?.throwIfAborted();
    },
  });
  const [bos, eos] = [settings.bos === "none" ? null : settings.bos, settings.eos];
  const unique = lastOfEach(merges);
  const trained = { type, rule, bos, eos, special, tokens, merges: unique };
  await writeTokenizer(out, trained).catch((cause: Error) => {
    throw new UsageError(`[trainTokenizer] cannot write ${out}: ${cause.message}`, { cause });
  });
  const tokenizer = await Tokenizer.load(out);
  return {
    folder: out,
    tokenizer,
    documents,
    textBytes,
    words: counted.words.size,
    merges: unique.length,
    warnings: warningsOf(settings, sources, counted, tokens.length),
  };
}

const byteTokens = Array.from({ length: 256 }, (_, byte) => byteTokenName(byte));

/**
 * Each pair once, at its last place. A pair may come up again after another merge has made one of its
 * tokens in a second way.
 */
function lastOfEach(merges: readonly [number, number][]): [number, number][] {
  const places = new Map<string, number>();
  for (const [place, pair] of merges.entries()) places.set(pair.join(" "), place);
  return merges.filter((pair, place) => places.get(pair.join(" ")) === place);
}

function settingsOf(options: TrainTokenizerOptions): Settings {
  const inputs = Array.isArray(options?.inputs)
    ? options.inputs.map((input: unknown) => (typeof input === "string" ? { path: input } : input))
    : options?.inputs;
  const settings = checkOptionsBy("trainTokenizer", callSchema, { ...options, inputs });
  const chat = settings.inputs.find(({ kind }) => kind === "chat");
  if (chat !== undefined) {
    throw new ArgumentError(
      `[trainTokenizer] ${chat.path}: ${optionValue("kind", "chat")} needs a tokenizer that exists: ` +
        `train on text, or on the text of records (${optionName("textField")})`,
    );
  }
  if (settings.characterCoverage !== undefined && settings.type !== "byte-fallback") {
    const needed = optionValue("type", "byte-fallback");
    throw new ArgumentError(`[trainTokenizer] ${optionName("characterCoverage")} needs ${needed}`);
  }
  for (const input of settings.inputs) selectionOf(input);
  return settings;
}

/** The special tokens in the order of their ids. */
function specialTokensOf({ bos, eos, specialTokens = [], type }: Settings): string[] {
  const special = [...(bos === "none" ? [] : [bos]), eos, ...specialTokens];
  const fail = (token: string, problem: string): never => {
    throw new ArgumentError(`[trainTokenizer] special token ${JSON.stringify(token)}: ${problem}`);
  };
  for (const [index, token] of special.entries()) {
    if (special.indexOf(token) !== index) fail(token, "is named twice");
    if ([...token].length === 1) fail(token, "one character is text; expected a longer name");
    if (/\p{Cs}/u.test(token)) fail(token, "is no valid Unicode");
    if (type === "byte-fallback" && byteTokens.includes(token)) fail(token, "stands for a byte");
  }
  return special;
}

function checkRoom({ vocabSize, type }: Settings, alphabet: number, special: number): void {
  if (alphabet <= vocabSize) return;
  const parts =
    type === "byte-level"
      ? `${special} special tokens and 256 bytes`
      : `${special} special tokens, 256 bytes and ${alphabet - special - 256} characters`;
  const hint =
    type === "byte-level"
      ? ""
      : `, or a lower ${optionName("characterCoverage")} for fewer characters`;
  throw new ArgumentError(
    `[trainTokenizer] ${optionValue("vocabSize", String(vocabSize))} has no room for ${parts}: expected ` +
      `at least ${alphabet}${hint}`,
  );
}

/** @throws UsageError if the folder holds a tokenizer that must stay */
async function checkFolder(folder: string, overwrite: boolean): Promise<void> {
  if (overwrite) return;
  for (const name of ["tokenizer.json", "tokenizer_config.json", "tokenizer.model"]) {
    const path = join(folder, name);
    const isThere = await access(path).then(
      () => true,
      () => false,
    );
    if (!isThere) continue;
    throw new UsageError(
      `[trainTokenizer] ${path} exists: choose another folder, or replace it (${optionName("overwrite")})`,
    );
  }
}

function warningsOf(
  { vocabSize, minFrequency }: Settings,
  sources: readonly { found: FoundInput }[],
  { words, bad }: CountedWords,
  tokens: number,
): string[] {
  const warnings = sources.flatMap(({ found }) => found.notes);
  if (bad > 0) warnings.push(`left out ${bad} bad records`);
  if (words.dropped > 0) {
    warnings.push(
      `the text has more different words than memory may hold: the rarest, of up to ${words.dropped} occurrences at a ` +
        "time, did not count",
    );
  }
  if (tokens < vocabSize) {
    warnings.push(
      `the text yields only ${tokens} tokens of ${vocabSize}: no other pair occurs ${minFrequency} times. Give more ` +
        "text, or a smaller vocabulary",
    );
  }
  return warnings;
}
