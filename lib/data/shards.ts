import { lstat } from "node:fs/promises";
import { join } from "node:path";
import {
  argumentError,
  checkInteger,
  checkMade,
  checkObject,
  checkPath,
  describe,
} from "../core/check-values.js";
import { ArgumentError, DataError, NoTokensError } from "../core/errors.js";
import { optionName } from "../core/option-names.js";
import { type ChatShard, ChatWindows, type PlacedChat, secondHalf } from "./chat-windows.js";
import {
  bytesPerId,
  chatTemplateFile,
  type DatasetFile,
  indexFile,
  maskFile,
  readDatasetFile,
  type ShardEntry,
  type Split,
  splitFingerprint,
  splitNames,
  type TokenDType,
} from "./dataset-file.js";
import { checkIndex } from "./document-index.js";
import { isForeign, readForeign } from "./foreign.js";
import type { HashedFileEntry } from "./shard-check.js";
import { FilePool, TokenFile } from "./token-file.js";
import type { DocumentMarks } from "./windows.js";

/** Which part of a data set is opened, and how. */
export interface DatasetOptions {
  /** T: a window has T inputs and T targets. */
  sequenceLength: number;
  /** Default: "train". */
  split?: Split;
  /**
   * Of pairs: the most tokens of one answer with its prompt, the model's context. A window, which
   * holds both answers, may be longer. Default: sequenceLength.
   */
  contextLength?: number;
}

/** The tokens of one split, of a data set made by `prepare` or of another trainer's files. */
export interface TokenRow {
  /** Folder or file that was opened. */
  folder: string;
  split: Split;
  files: readonly { path: string; tokens: number; headerBytes: number }[];
  /** Files with a known SHA-256; empty for other trainers' files. */
  hashed: readonly HashedFileEntry[];
  dtype: TokenDType;
  vocabSize: number;
  eosId: number;
  marks: DocumentMarks;
  /** Path of the tokenizer; null if only the size of the vocabulary is known. */
  tokenizer: string | null;
  tokenizerSha256: string;
  /** UTF-8 bytes of text per token; 0 if unknown. */
  bytesPerToken: number;
  repeatedShare: number;
  fingerprint: string;
  /** Chats or pairs, with the shards' masks; undefined for text. */
  chats?: {
    shards: readonly ChatShard[];
    pairs: boolean;
    endId: number | null;
    templateSha256: string | null;
  };
}

/** Facts that a data set records about its chats or pairs of answers. */
export interface DatasetChats {
  /** Whether they are pairs: a prompt with the preferred answer, and with the rejected one. */
  pairs: boolean;
  /** Path of the template that wrote the chats; null for pairs of plain text. */
  template: string | null;
  templateSha256: string | null;
  /** Token that ends an answer; null if none does. */
  endId: number | null;
  /** Number of chats that are longer than a window, and how many of their tokens are cut off. */
  cut: { chats: number; tokens: number };
  /** Number of chats or pairs that are in no window, because nothing would be left of an answer. */
  leftOut: number;
  count: number;
  /** Share of the windows' ids that is no padding. */
  filled: number;
}

/**
 * One split of a data set, as windows.
 *
 * The tokens of all shards, one after the other, are one long row. Window w is the T+1 tokens from
 * w·T on: its inputs are the first T, its targets the last T. Windows therefore overlap by one
 * token, every token but the first is a target exactly once, and at most T tokens at the very end
 * are in no window. Windows cross the borders of documents and shards.
 *
 * Windows of chats are different: each holds whole chats, packed so that little room is left, and
 * padding after the last of them. So do windows of pairs: both answers of a pair are in one window.
 */
export class TokenDataset {
  readonly folder: string;
  readonly split: Split;
  readonly sequenceLength: number;
  /** Number of windows. */
  readonly windows: number;
  readonly tokens: number;
  readonly vocabSize: number;
  readonly eosId: number;
  /** Ids that separate documents in the row of tokens. */
  readonly marks: DocumentMarks;
  /** Path of the tokenizer; null for foreign tokens with only a known vocabulary size. */
  readonly tokenizer: string | null;
  readonly tokenizerSha256: string;
  /** UTF-8 bytes of text per token, 0 if unknown. Converts nats per token into bits per byte. */
  readonly bytesPerToken: number;
  /** Share of the tokens that stand in long runs of one token. A large share deserves a warning. */
  readonly repeatedShare: number;
  /** Identifies the tokens: equal tokens in the same order have the same fingerprint. */
  readonly fingerprint: string;
  /** Files with a SHA-256 in dataset.json: the shards and their indices. */
  readonly hashedFiles: readonly HashedFileEntry[];
  /** Facts about chats or pairs; null for text. */
  readonly chats: DatasetChats | null;
  readonly #chatWindows: ChatWindows | null;
  readonly #pool: FilePool;
  readonly #files: readonly TokenFile[];
  /** Start of each shard in the row of tokens. */
  readonly #starts: readonly number[];

  private constructor(
    row: TokenRow,
    sequenceLength: number,
    chats: ChatWindows | null,
    pool: FilePool,
  ) {
    checkMade("TokenDataset", "TokenDataset.open()", Array.isArray(row?.files));
    this.#pool = pool;
    this.folder = row.folder;
    this.split = row.split;
    this.sequenceLength = sequenceLength;
    let tokens = 0;
    this.#starts = row.files.map((file) => {
      const start = tokens;
      tokens += file.tokens;
      return start;
    });
    this.tokens = tokens;
    this.windows = chats?.windows ?? Math.floor((tokens - 1) / sequenceLength);
    this.#chatWindows = chats;
    this.chats =
      row.chats && chats
        ? {
            pairs: row.chats.pairs,
            template: row.chats.templateSha256 && join(row.folder, chatTemplateFile),
            templateSha256: row.chats.templateSha256,
            endId: row.chats.endId,
            cut: chats.cut,
            leftOut: chats.leftOut,
            count: chats.chats,
            filled: chats.filled,
          }
        : null;
    this.vocabSize = row.vocabSize;
    this.eosId = row.eosId;
    this.marks = row.marks;
    this.tokenizer = row.tokenizer;
    this.tokenizerSha256 = row.tokenizerSha256;
    this.bytesPerToken = row.bytesPerToken;
    this.repeatedShare = row.repeatedShare;
    this.fingerprint = row.fingerprint;
    this.hashedFiles = row.hashed;
    this.#files = row.files.map(
      (file) => new TokenFile(file.path, file.tokens, row, this.#pool, file.headerBytes),
    );
  }

  /**
   * Opens a folder made by `prepare`, or a description of foreign token files (`.yaml`, see
   * `readForeign`). Everything is checked except the tokens, which are checked when they are read.
   * @throws DataError naming the file that is wrong, or if the tokens do not fill one window
   */
  static async open(folder: string, options: DatasetOptions): Promise<TokenDataset> {
    checkPath("data", "folder", folder);
    checkObject("data", "options", options);
    const { sequenceLength, split = "train", contextLength = sequenceLength } = options;
    checkInteger("data", "contextLength", contextLength, { min: 1 });
    if (!Number.isSafeInteger(sequenceLength) || sequenceLength < 1) {
      throw new ArgumentError(
        `[data] expected a sequenceLength from 1 on, got ${describe(sequenceLength)}`,
      );
    }
    if (!splitNames.includes(split)) {
      throw new ArgumentError(
        `[data] expected split "train" or "validation", got ${describe(split)}`,
      );
    }
    const row = isForeign(folder) ? await readForeign(folder, split) : await ownRow(folder, split);
    const tokens = row.files.reduce((sum, file) => sum + file.tokens, 0);
    const pool = new FilePool();
    if (row.chats) {
      const { shards, pairs } = row.chats;
      const how = { pairs, longest: contextLength, pool };
      // A caller that fails with another data set closes no files of this one.
      const chats = await ChatWindows.open(shards, sequenceLength + 1, how).finally(() =>
        pool.close(),
      );
      if (chats.windows === 0) {
        throw new NoTokensError(
          pairs
            ? `[data] ${folder}: no pair fits a window of ${sequenceLength} tokens, which holds ` +
                "both answers with their prompts: lengthen the sequence"
            : `[data] ${folder}: no chat has an answer within a window of ${sequenceLength} ` +
                "tokens: lengthen the sequence",
        );
      }
      return new TokenDataset(row, sequenceLength, chats, pool);
    }
    if (tokens < sequenceLength + 1) {
      throw new NoTokensError(
        `[data] ${folder} has ${tokens} ${split} tokens, but one window of sequenceLength ${sequenceLength} ` +
          `needs ${sequenceLength + 1}: add text, or shorten the sequence`,
      );
    }
    return new TokenDataset(row, sequenceLength, null, pool);
  }

  /** Reads window `window` into `into`, which holds T+1 ids. */
  async read(window: number, into: Int32Array): Promise<void> {
    if (!Number.isSafeInteger(window) || window < 0 || window >= this.windows) {
      throw new ArgumentError(
        `[data] expected a window in 0..${this.windows - 1} of ${this.folder}, got ${describe(window)}`,
      );
    }
    if (!(into instanceof Int32Array)) throw argumentError("data", "an Int32Array", "into", into);
    if (into.length !== this.sequenceLength + 1) {
      throw new ArgumentError(
        `[data] expected room for ${this.sequenceLength + 1} ids, got ${into.length}`,
      );
    }
    if (this.#chatWindows) {
      await this.readChats(window, into);
      return;
    }
    const start = window * this.sequenceLength;
    let shard = this.#shardOf(start);
    let done = 0;
    while (done < into.length) {
      const file = this.#files[shard] as TokenFile;
      const offset = start + done - (this.#starts[shard] as number);
      const count = Math.min(into.length - done, file.tokens - offset);
      await file.read(offset, into.subarray(done, done + count));
      done += count;
      shard++;
    }
  }

  /**
   * Reads a window of chats: ids up to the last chat's end, then padding with the end-of-text id.
   * @param mask   for each id the bits of `maskBits`: whether the loss counts it, and whether it
   *   belongs to the rejected half of a pair
   * @param starts for each id, the index in the window at which its chat begins, or its half of a
   *   pair; in the padding, its own
   */
  async readChats(
    window: number,
    ids: Int32Array,
    mask = new Uint8Array(ids.length),
    starts = new Int32Array(ids.length),
  ): Promise<void> {
    const chats = this.#chatWindows;
    if (chats === null) throw new ArgumentError(`[data] ${this.folder} holds text, no chats`);
    const reads: Promise<void>[] = [];
    let at = 0;
    for (const chat of chats.chatsOf(window)) {
      const end = at + chat.length;
      const into = [ids, mask, starts].map((array) => array.subarray(at, end));
      reads.push(this.#readChat(chats, chat, at, into as [Int32Array, Uint8Array, Int32Array]));
      at = end;
    }
    ids.fill(this.eosId, at);
    mask.fill(0, at);
    for (; at < ids.length; at++) starts[at] = at;
    await Promise.all(reads);
  }

  /** Reads a chat or a pair that begins at index `at` of its window. */
  async #readChat(
    chats: ChatWindows,
    chat: PlacedChat,
    at: number,
    [ids, mask, starts]: [Int32Array, Uint8Array, Int32Array],
  ): Promise<void> {
    const file = this.#files[chat.shard] as TokenFile;
    const { start, length, halves } = chat;
    if (halves) {
      const [chosen, rejected] = halves.kept;
      const whole = await chats.readMask(chat, halves.first + rejected, this.#pool);
      mask.set(whole.subarray(0, chosen));
      mask.set(whole.subarray(halves.first), chosen);
      await file.read(start, ids.subarray(0, chosen));
      await file.read(start + halves.first, ids.subarray(chosen, chosen + rejected));
    } else {
      mask.set(await chats.readMask(chat, length, this.#pool));
      await file.read(start, ids);
    }
    starts.fill(at);
    const second = secondHalf(mask);
    if (second >= 0) starts.fill(at + second, second);
  }

  /** Closes the files. A later read opens them again. */
  async close(): Promise<void> {
    await this.#pool.close();
  }

  /**
   * Number of the shard that holds a token of the row: the last shard that starts at or before it.
   */
  #shardOf(token: number): number {
    let low = 0;
    let high = this.#starts.length - 1;
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if ((this.#starts[middle] as number) <= token) low = middle;
      else high = middle - 1;
    }
    return low;
  }
}

/** The tokens of a folder made by `prepare`. */
async function ownRow(folder: string, split: Split): Promise<TokenRow> {
  const dataset = await readDatasetFile(folder);
  const { tokens, bytes, shards } = dataset.splits[split];
  if (tokens === 0) {
    throw new NoTokensError(
      split === "validation"
        ? `[data] ${folder} holds no validation documents: prepare it with a larger ${optionName("validationFraction")}`
        : `[data] ${folder} holds no tokens for training`,
    );
  }
  for (const shard of shards) await checkShard(folder, shard, dataset, false);
  const answers = dataset.chats ?? dataset.pairs;
  return {
    folder,
    split,
    files: shards.map((shard) => ({
      path: join(folder, shard.file),
      tokens: shard.tokens,
      headerBytes: 0,
    })),
    hashed: shards.flatMap(({ file, sha256, indexSha256, maskSha256 }) => [
      { path: join(folder, file), sha256 },
      { path: join(folder, indexFile(file)), sha256: indexSha256 },
      ...(maskSha256 ? [{ path: join(folder, maskFile(file)), sha256: maskSha256 }] : []),
    ]),
    dtype: dataset.dtype,
    vocabSize: dataset.vocabSize,
    eosId: dataset.eosId,
    marks: {
      startId: dataset.documentStart === "bos" ? dataset.bosId : null,
      endId: { none: null, eos: dataset.eosId, token: dataset.endId ?? null }[dataset.documentEnd],
    },
    tokenizer: folder,
    tokenizerSha256: dataset.tokenizer.sha256,
    // The loss on the assistant's tokens says nothing of the bytes of the others.
    bytesPerToken: answers ? 0 : bytes / tokens,
    repeatedShare: shards.reduce((sum, shard) => sum + shard.repeatedTokens, 0) / tokens,
    fingerprint: splitFingerprint(dataset, split),
    ...(answers && {
      chats: {
        ...answers,
        pairs: dataset.pairs !== undefined,
        shards: shards.map(({ file, documents, tokens }) => ({
          index: join(folder, indexFile(file)),
          mask: join(folder, maskFile(file)),
          documents,
          tokens,
        })),
      },
    }),
  };
}

/**
 * Checks the sizes of a shard and of its index. With `wholeIndex` it also checks that all document
 * starts rise.
 */
export async function checkShard(
  folder: string,
  shard: ShardEntry,
  dataset: DatasetFile,
  wholeIndex: boolean,
): Promise<void> {
  const path = join(folder, shard.file);
  const info = await lstat(path).catch((cause: NodeJS.ErrnoException) => {
    throw new DataError(`[data] cannot read ${path}: ${cause.message}`, { cause });
  });
  if (!info.isFile()) throw new DataError(`[data] ${path} is no regular file`);
  const size = bytesPerId[dataset.dtype];
  if (info.size % size !== 0) {
    throw new DataError(
      `[data] ${path} has ${info.size} bytes: no whole number of ${dataset.dtype} ids`,
    );
  }
  if (shard.tokens === 0) throw new DataError(`[data] ${path} holds no tokens`);
  if (info.size !== shard.tokens * size) {
    throw new DataError(
      `[data] ${path} has ${info.size / size} tokens, but dataset.json says ${shard.tokens}`,
    );
  }
  await checkIndex(join(folder, indexFile(shard.file)), shard, wholeIndex);
  if (shard.maskSha256 === undefined) return;
  const mask = join(folder, maskFile(shard.file));
  const found = await lstat(mask).catch((cause: NodeJS.ErrnoException) => {
    throw new DataError(`[data] cannot read ${mask}: ${cause.message}`, { cause });
  });
  if (found.isFile() && found.size === shard.tokens) return;
  throw new DataError(
    `[data] ${mask} has ${found.size} bytes, but ${shard.tokens} tokens need one each`,
  );
}
