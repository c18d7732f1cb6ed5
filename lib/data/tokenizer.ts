import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Tokenizer as HuggingFaceTokenizer } from "tokenizers";
import {
  argumentError,
  checkArray,
  checkBoolean,
  checkChoice,
  checkMade,
  checkNumber,
  checkObject,
  checkOptions,
  checkPath,
  checkString,
} from "../check-values.js";
import { ArgumentError, DataError, TokenizerError } from "../errors.js";
import { batches, maxPartLength, type Part, splitText } from "./text-parts.js";
import { TextStream, type TokenBytes, tokenBytes } from "./token-bytes.js";
import { readTokenizerFiles, type TokenizerFiles } from "./tokenizer-files.js";
import {
  type CheckedTokenizer,
  parseTokenizerJson,
  type Variant,
  variantJson,
} from "./tokenizer-json.js";

export interface EncodeOptions {
  /** Put the beginning-of-text id in front. Default: false. */
  bos?: boolean;
  /** Put the end-of-text id behind. Default: false. */
  eos?: boolean;
  /**
   * What `</s>` and the like in the text are: ordinary characters (default), or the special ids. Training data must
   * never be able to spell an end of document.
   */
  specialTokens?: "text" | "recognize";
}

export interface DecodeOptions {
  /** Leave special tokens out (default), or write their names. */
  specialTokens?: "skip" | "keep";
}

/** What a model says about its vocabulary, to compare with a tokenizer. */
export interface VocabularyOfModel {
  vocabSize: number;
  bosId?: number | null;
  eosId?: number | null;
}

/** The names that end a document, for folders that do not say. */
const usualEosTokens = ["</s>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<eos>"];
const usualBosTokens = ["<s>", "<|begin_of_text|>", "<bos>"];

/**
 * A Hugging Face tokenizer (`tokenizer.json`) of the Llama family: BPE with byte fallback or byte level, so every
 * text has ids and comes back from them. A lone surrogate in a JavaScript string, which no UTF-8 can hold, is
 * encoded as U+FFFD.
 */
export class Tokenizer {
  /** The tokenizer.json. */
  readonly file: string;
  /** Hash of the tokenizer.json: data and checkpoints name their tokenizer by it. */
  readonly sha256: string;
  /** Ids are 0..vocabSize-1, special and added tokens included. */
  readonly vocabSize: number;
  readonly eosId: number;
  readonly bosId: number | null;
  readonly #files: TokenizerFiles;
  readonly #checked: CheckedTokenizer;
  readonly #bytes: TokenBytes;
  readonly #variants = new Map<string, HuggingFaceTokenizer>();

  private constructor(files: TokenizerFiles) {
    checkMade("Tokenizer", "Tokenizer.load()", typeof files?.text === "string");
    this.#files = files;
    this.file = files.file;
    this.sha256 = files.sha256;
    this.#checked = parseTokenizerJson(files.text, files.file);
    this.#bytes = tokenBytes(this.#checked, files.file);
    this.vocabSize = this.#checked.tokens.length;
    const eosId = this.#special("eos_token", usualEosTokens);
    if (eosId === null) {
      throw new TokenizerError(
        `[tokenizer] ${files.file}: no end-of-text token: none of ${usualEosTokens.join(" ")} is in it; ` +
          `name it as "eos_token" in tokenizer_config.json beside it`,
      );
    }
    this.eosId = eosId;
    this.bosId = this.#special("bos_token", usualBosTokens);
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
   * A text longer than `maxPartLength` is cut, by preference after a line break in front of a character that is not
   * white space, else in front of a single space, else between any two characters. The first two give the same ids as the
   * whole text under the splitting rules of GPT-4, Llama 3 and the quickstart; the last may split a token.
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
    const parts: (Part & { index: number })[] = [];
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
   * The ids of pieces of texts, each at most `maxPartLength` long. One that continues an earlier piece gets nothing put
   * in front of it.
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
      const { continues } = parts[batch[0] as number] as Part;
      const variant = this.#variant({ specialTokens, continues });
      const encodings = await variant.encodeBatch(
        batch.map((place) => (parts[place] as Part).text),
        { addSpecialTokens: false },
      );
      for (const [index, place] of batch.entries()) {
        encoded[place] = Int32Array.from((encodings[index] as { getIds(): number[] }).getIds());
      }
    }
    return encoded;
  }

  /** The text of ids. @throws TokenizerError for an id outside the vocabulary */
  decode(ids: Iterable<number>, options: DecodeOptions = {}): string {
    if (typeof (ids as Partial<Iterable<number>> | null)?.[Symbol.iterator] !== "function") {
      throw argumentError("decode", "token ids", "ids", ids);
    }
    const stream = this.decodeStream(options);
    return stream.pushAll(ids) + stream.end();
  }

  /** Text as ids arrive, for generation: `push(id)` returns the characters it completes. */
  decodeStream(options: DecodeOptions = {}): TextStream {
    checkOptions("decode", options, ["specialTokens"]);
    const { specialTokens = "skip" } = options;
    checkChoice("decode", "specialTokens", specialTokens, ["skip", "keep"]);
    const skip = specialTokens === "skip" ? this.#checked.specialIds : new Set<number>();
    return new TextStream(this.#bytes, skip);
  }

  /** The name of an id as the vocabulary has it, for messages. */
  token(id: number): string {
    checkNumber("token", "id", id);
    return this.#checked.tokens[id] ?? `<no token ${id}>`;
  }

  /**
   * Refuses a model whose vocabulary is not this tokenizer's. A model may have more rows than there are ids, as
   * padding to a round number is usual.
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

  /** tokenizer.json and what belongs to it by file name, as they were loaded: for checkpoints. */
  contents(): Record<string, Uint8Array> {
    const { bytes, companions } = this.#files;
    const files = [{ name: "tokenizer.json", bytes }, ...companions];
    return Object.fromEntries(files.map((file) => [file.name, file.bytes]));
  }

  /** Writes tokenizer.json and what belongs to it into a folder, as it was loaded. @returns the names */
  async copyTo(folder: string): Promise<string[]> {
    checkPath("copyTo", "folder", folder);
    const files = Object.entries(this.contents());
    // Data that has its tokenizer only half after a power failure is of no use.
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
    let loaded: HuggingFaceTokenizer;
    try {
      loaded = HuggingFaceTokenizer.fromString(variantJson(this.#checked, variant));
    } catch (cause) {
      throw new TokenizerError(`[tokenizer] ${this.file}: ${(cause as Error).message}`, { cause });
    }
    this.#variants.set(key, loaded);
    return loaded;
  }

  /** The id of a special token by the files beside the tokenizer.json, else by its usual names. */
  #special(field: "bos_token" | "eos_token", usual: readonly string[]): number | null {
    const idOf = new Map(this.#checked.tokens.map((token, id) => [token, id]));
    for (const { name: file, contents } of this.#files.companions) {
      const entry = contents[field];
      const name =
        typeof entry === "object" && entry !== null
          ? (entry as { content?: unknown }).content
          : entry;
      if (name === undefined || name === null) continue;
      const id = typeof name === "string" ? idOf.get(name) : undefined;
      if (id === undefined) {
        throw new TokenizerError(
          `[tokenizer] ${file}: ${field}: ${JSON.stringify(name)} is no token of ${this.file}`,
        );
      }
      return id;
    }
    const name = usual.find((token) => idOf.has(token));
    return name === undefined ? null : (idOf.get(name) as number);
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
