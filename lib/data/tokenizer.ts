import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  argumentError,
  checkArray,
  checkBoolean,
  checkChoice,
  checkInteger,
  checkMade,
  checkNumber,
  checkObject,
  checkOptions,
  checkPath,
  checkString,
} from "../core/check-values.js";
import { ArgumentError, DataError, TokenizerError } from "../core/errors.js";
import { checkGrowth } from "./normalizer-growth.js";
import { mayBacktrackLong, regexesIn } from "./regex-backtracking.js";
import { inCharacters, overlapping, type SpannedIds, type SpannedText } from "./spanned-text.js";
import { findSpecialTokens } from "./special-tokens.js";
import { batches, maxPartLength, splitText, type TextPart } from "./text-parts.js";
import { type Decoding, readDecoder, TextStream, tokenBytes } from "./text-stream.js";
import { readTokenizerFiles, type TokenizerFiles } from "./tokenizer-files.js";
import { type CheckedTokenizer, parseTokenizerJson } from "./tokenizer-json.js";
import { addsBos } from "./tokenizer-template.js";
import { type Variant, variantJson } from "./tokenizer-variants.js";
import { type HuggingFaceTokenizer, tokenizersPackage } from "./tokenizers-package.js";

/** How a text becomes ids. */
export interface EncodeOptions {
  /** Put the beginning-of-text id in front. Default: false. */
  bos?: boolean;
  /** Append the end-of-text id. Default: false. */
  eos?: boolean;
  /**
   * Treatment of special tokens such as `</s>` in the text: as ordinary characters (default), or as
   * the special ids. Training data must never be able to spell the end of a document.
   */
  specialTokens?: "text" | "recognize";
}

/** How ids become a text. */
export interface DecodeOptions {
  /** Skip special tokens (default), or write their names. */
  specialTokens?: "skip" | "keep";
}

/** A model's vocabulary, to compare with a tokenizer. */
export interface VocabularyOfModel {
  vocabSize: number;
  bosId?: number | null;
  eosId?: number | null;
}

/**
 * A Hugging Face tokenizer (`tokenizer.json`) of the Llama family: BPE with byte fallback or byte
 * level. Every text therefore has ids and can be recovered from them. A lone surrogate in a
 * JavaScript string, which UTF-8 cannot represent, is encoded as U+FFFD.
 */
export class Tokenizer {
  /** Path of the tokenizer.json. */
  readonly file: string;
  /** SHA-256 of the tokenizer.json, by which data sets and checkpoints identify their tokenizer. */
  readonly sha256: string;
  /**
   * Number of ids, special and added tokens included: the largest id and 1. Ids are
   * 0..vocabSize-1, of which those in `gaps` have no token.
   */
  readonly vocabSize: number;
  readonly eosId: number;
  readonly bosId: number | null;
  readonly #files: TokenizerFiles;
  readonly #checked: CheckedTokenizer;
  readonly #specialIds: ReadonlySet<number>;
  readonly #decoding: Decoding;
  readonly #variants = new Map<string, HuggingFaceTokenizer>();

  private constructor(files: TokenizerFiles) {
    checkMade("Tokenizer", "Tokenizer.load()", typeof files?.text === "string");
    this.#files = files;
    this.file = files.file;
    this.sha256 = files.sha256;
    this.#checked = parseTokenizerJson(files.text, files.file);
    checkGrowth(this.#checked.json, files.file);
    this.#decoding = readDecoder(this.#checked, files.file);
    this.vocabSize = this.#checked.tokens.length;
    const { eosId, bosId, ids } = findSpecialTokens(this.#checked, files);
    this.eosId = eosId;
    this.bosId = bosId;
    this.#specialIds = ids;
    this.#variant({ specialTokens: "text", continues: false });
  }

  /**
   * @param path a tokenizer.json, or a folder with one
   * @throws TokenizerError naming the file and the field that is wrong
   */
  static async load(path: string): Promise<Tokenizer> {
    checkPath("Tokenizer.load", "path", path);
    return new Tokenizer(await readTokenizerFiles(path));
  }

  /** The ids of one text. */
  async encode(text: string, options: EncodeOptions = {}): Promise<Int32Array> {
    const [ids] = await this.encodeBatch([text], options);
    return ids as Int32Array;
  }

  /**
   * The ids of several texts, encoded on all cores.
   *
   * A text longer than `maxPartLength` is cut, by preference after a line break in front of a
   * character that is not white space, else in front of a single space, else between any two
   * characters. The first two cuts give the same ids as the whole text under the splitting rules of
   * GPT-4, Llama 3 and the quickstart; the third may split a token.
   */
  async encodeBatch(texts: readonly string[], options: EncodeOptions = {}): Promise<Int32Array[]> {
    checkArray("encode", "texts", texts, "an array of strings");
    checkOptions("encode", options, ["bos", "eos", "specialTokens"]);
    const { bos = false, eos = false, specialTokens = "text" } = options;
    checkBoolean("encode", "bos", bos);
    checkBoolean("encode", "eos", eos);
    if (bos && this.bosId === null) {
      throw new TokenizerError(`[tokenizer] ${this.file}: has no beginning-of-text token`);
    }
    const parts: (TextPart & { index: number })[] = [];
    for (const [index, text] of texts.entries()) {
      if (typeof text !== "string") {
        throw new ArgumentError(`[encode] expected a string for text ${index}, got ${typeof text}`);
      }
      for (const [place, part] of splitText(text, maxPartLength).entries()) {
        parts.push({ text: part, index, continues: place > 0 });
      }
    }
    const encoded: Int32Array[][] = texts.map(() => []);
    const lists = await this.encodeParts(parts, specialTokens);
    for (const [place, { index }] of parts.entries()) {
      (encoded[index] as Int32Array[]).push(lists[place] as Int32Array);
    }
    const before = bos ? [Int32Array.of(this.bosId as number)] : [];
    const after = eos ? [Int32Array.of(this.eosId)] : [];
    return encoded.map((ids) => concat([...before, ...ids, ...after]));
  }

  /**
   * The ids of pieces of texts, each at most `maxPartLength` UTF-16 units long. Nothing is put in
   * front of a piece that continues an earlier one.
   */
  async encodeParts(
    parts: readonly { text: string; continues: boolean }[],
    specialTokens: "text" | "recognize" = "text",
  ): Promise<Int32Array[]> {
    checkArray("encodeParts", "parts", parts, "an array of { text, continues }");
    for (const [index, part] of parts.entries()) {
      checkObject("encodeParts", `parts[${index}]`, part, "{ text, continues }");
      checkString("encodeParts", `parts[${index}].text`, part.text);
      checkBoolean("encodeParts", `parts[${index}].continues`, part.continues);
    }
    checkChoice("encodeParts", "specialTokens", specialTokens, ["text", "recognize"]);
    const encoded: Int32Array[] = [];
    for (const batch of batches(parts)) {
      const { continues } = parts[batch[0] as number] as TextPart;
      const variant = this.#variant({ specialTokens, continues });
      const encodings = await variant.encodeBatch(
        batch.map((place) => (parts[place] as TextPart).text),
        { addSpecialTokens: false },
      );
      for (const [index, place] of batch.entries()) {
        encoded[place] = Int32Array.from((encodings[index] as { getIds(): number[] }).getIds());
      }
    }
    return encoded;
  }

  /**
   * The ids of whole texts in which some parts count. Special tokens in a text become their ids, as
   * in transformers' chats. A text is never cut.
   * @param texts texts with the starts and ends of their parts in UTF-16 units, in order
   * @returns of each text the ids, and for each id 1 if it holds a character of a part, else 0
   */
  async encodeSpans(texts: readonly SpannedText[]): Promise<SpannedIds[]> {
    checkArray("encodeSpans", "texts", texts, "an array of { text, spans }");
    for (const [index, given] of texts.entries()) {
      checkObject("encodeSpans", `texts[${index}]`, given, "{ text, spans }");
      checkString("encodeSpans", `texts[${index}].text`, given.text);
      checkArray("encodeSpans", `texts[${index}].spans`, given.spans, "pairs of start and end");
    }
    const variant = this.#variant({ specialTokens: "recognize", continues: false });
    const encodings = await variant.encodeBatch(
      texts.map(({ text }) => text),
      { addSpecialTokens: false },
    );
    return encodings.map((encoding, index) => {
      const ids = Int32Array.from(encoding.getIds());
      const spans = inCharacters(texts[index] as SpannedText);
      return { ids, counted: overlapping(encoding.getOffsets(), spans) };
    });
  }

  /** Decodes ids. @throws TokenizerError for an id outside the vocabulary */
  decode(ids: Iterable<number>, options: DecodeOptions = {}): string {
    if (typeof (ids as Partial<Iterable<number>> | null)?.[Symbol.iterator] !== "function") {
      throw argumentError("decode", "token ids", "ids", ids);
    }
    const stream = this.decodeStream(options);
    return stream.pushAll(ids) + stream.end();
  }

  /**
   * Decodes lists of ids as Hugging Face tokenizers do, for results that must equal theirs. The
   * texts differ from those of `decode` only at bytes that are not UTF-8: in a row of byte tokens
   * with such a byte, each byte becomes U+FFFD.
   * @throws TokenizerError for an id outside the vocabulary
   */
  async decodeBatch(
    lists: readonly (readonly number[])[],
    options: DecodeOptions = {},
  ): Promise<string[]> {
    checkArray("decodeBatch", "lists", lists, "an array of lists of token ids");
    checkOptions("decodeBatch", options, ["specialTokens"]);
    const { specialTokens = "skip" } = options;
    checkChoice("decodeBatch", "specialTokens", specialTokens, ["skip", "keep"]);
    for (const ids of lists) {
      const wrong = ids.find((id) => !Number.isInteger(id) || id < 0 || id >= this.vocabSize);
      if (wrong === undefined) continue;
      throw new TokenizerError(
        `[tokenizer] expected an id in 0..${this.vocabSize - 1}, got ${String(wrong)}`,
      );
    }
    const variant = this.#variant({ specialTokens: "recognize", continues: false });
    return await variant.decodeBatch(lists as number[][], specialTokens === "skip");
  }

  /**
   * Decodes ids as they arrive, for generation: `push(id)` returns the characters that the id
   * completes.
   */
  decodeStream(options: DecodeOptions = {}): TextStream {
    checkOptions("decode", options, ["specialTokens"]);
    const { specialTokens = "skip" } = options;
    checkChoice("decode", "specialTokens", specialTokens, ["skip", "keep"]);
    const { gaps } = this.#checked;
    const skip = specialTokens === "skip" ? [...this.#specialIds, ...gaps] : gaps;
    return new TextStream(this.#decoding, new Set(skip));
  }

  /** Ids below `vocabSize` without a token. No text has them, and they decode to nothing. */
  get gaps(): ReadonlySet<number> {
    return this.#checked.gaps;
  }

  /** Whether an id is a special token, which is no text. */
  isSpecial(id: number): boolean {
    checkNumber("isSpecial", "id", id);
    return this.#specialIds.has(id);
  }

  /** The id of a token by its name; null if there is none. */
  idOf(token: string): number | null {
    checkString("idOf", "token", token);
    const id = token === "" ? -1 : this.#checked.tokens.indexOf(token);
    return id < 0 ? null : id;
  }

  /** Ids of the special tokens, in order. */
  get specialIds(): number[] {
    return [...this.#specialIds].sort((a, b) => a - b);
  }

  /** Name of an id in the vocabulary, for messages. */
  token(id: number): string {
    checkNumber("token", "id", id);
    return this.#checked.tokens[id] || `<no token ${id}>`;
  }

  /**
   * The bytes that an id adds within a text. Of a character that several tokens share, a token has
   * some bytes. A special token has the bytes of its name.
   * @throws ArgumentError for an id outside the vocabulary
   */
  tokenBytes(id: number): Uint8Array {
    checkInteger("tokenBytes", "id", id, { min: 0, max: this.vocabSize - 1 });
    return tokenBytes(this.#decoding, id);
  }

  /**
   * Refuses a model whose vocabulary does not match. A model may have more rows than there are ids,
   * because padding to a round number is usual.
   */
  assertFits(model: VocabularyOfModel): void {
    checkObject("assertFits", "model", model, "{ vocabSize, bosId, eosId }");
    checkNumber("assertFits", "model.vocabSize", model.vocabSize, { min: 0 });
    const fail = (problem: string): never => {
      throw new TokenizerError(`[tokenizer] ${this.file} does not fit the model: ${problem}`);
    };
    if (model.vocabSize < this.vocabSize) {
      fail(`vocabSize: it has ids up to ${this.vocabSize - 1}, the model ${model.vocabSize} rows`);
    }
    for (const name of ["bosId", "eosId"] as const) {
      const expected = model[name];
      if (typeof expected === "number" && expected !== this[name]) {
        fail(`${name}: it has ${String(this[name])}, the model ${expected}`);
      }
    }
  }

  /**
   * Whether a text may make a regular expression of this tokenizer backtrack so long that the
   * `tokenizers` package ends the process.
   * @internal
   */
  get mayAbort(): boolean {
    const { normalizer, pre_tokenizer: splitting } = JSON.parse(this.#files.text);
    return regexesIn([normalizer, splitting]).some(mayBacktrackLong);
  }

  /** Whether other programs put this tokenizer's beginning-of-text token in front of every text. */
  get addsBos(): boolean {
    if (this.bosId === null) return false;
    const contents = this.#files.companions.map((companion) => companion.contents);
    return addsBos(JSON.parse(this.#files.text), contents, this.token(this.bosId));
  }

  /**
   * The contents of tokenizer.json and its companion files by name, as they were loaded: for
   * checkpoints.
   */
  contents(): Record<string, Uint8Array> {
    const { bytes, companions } = this.#files;
    const files = [{ name: "tokenizer.json", bytes }, ...companions];
    return Object.fromEntries(files.map((file) => [file.name, file.bytes]));
  }

  /**
   * Writes tokenizer.json and its companion files into a folder, as they were loaded. @returns
   * their names
   */
  async copyTo(folder: string): Promise<string[]> {
    checkPath("copyTo", "folder", folder);
    const files = Object.entries(this.contents());
    // Synced to disk, because data with half a tokenizer after a power failure is useless.
    for (const [name, bytes] of files) {
      await writeFile(join(folder, name), bytes, { flush: true }).catch((cause: Error) => {
        throw new DataError(`[tokenizer] cannot write into ${folder}: ${cause.message}`, {
          cause,
        });
      });
    }
    return files.map(([name]) => name);
  }

  #variant(variant: Variant): HuggingFaceTokenizer {
    const key = `${variant.specialTokens} ${variant.continues}`;
    const known = this.#variants.get(key);
    if (known !== undefined) return known;
    const { Tokenizer: Package } = tokenizersPackage();
    let loaded: HuggingFaceTokenizer;
    try {
      loaded = Package.fromString(variantJson(this.#checked, this.#specialIds, variant));
    } catch (cause) {
      throw new TokenizerError(`[tokenizer] ${this.file}: ${(cause as Error).message}`, { cause });
    }
    this.#variants.set(key, loaded);
    return loaded;
  }
}

function concat(lists: readonly Int32Array[]): Int32Array {
  if (lists.length === 1) return lists[0] as Int32Array;
  const ids = new Int32Array(lists.reduce((total, list) => total + list.length, 0));
  let at = 0;
  for (const list of lists) {
    ids.set(list, at);
    at += list.length;
  }
  return ids;
}
