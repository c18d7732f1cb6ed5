import { rm } from "node:fs/promises";
import { join } from "node:path";
import { DataError } from "../core/errors.js";
import { optionName } from "../core/option-names.js";
import {
  bytesPerId,
  indexEntryBytes,
  indexFile,
  maskBits,
  maskFile,
  type ShardEntry,
  type Split,
  type SplitEntry,
  shardFile,
  type TokenDType,
} from "../data/dataset-file.js";
import { minRunLength, RunCounter } from "../data/run-counter.js";
import type { FolderIdentity } from "../files/folder-identity.js";
import { HashedFile } from "./hashed-file.js";
import { expectUnmoved } from "./moved.js";

export { RunCounter } from "../data/run-counter.js";

/** Ids of the type that a shard stores, in this machine's byte order. */
export type StoredIds = Uint16Array | Uint32Array;

export interface ShardWriterOptions {
  folder: string;
  /** Identity of `folder`: no file is written if another folder has taken its place. */
  identity: FolderIdentity;
  split: Split;
  dtype: TokenDType;
  /** Whether a mask of counted targets stands beside the tokens. */
  masked: boolean;
  /** A shard ends with the first document that brings it to this many tokens. */
  shardTokens: number;
  /** Largest share of a shard's tokens that may stand in runs of one token. */
  maxRunShare: number;
  /** The name of a token, for the message about runs. */
  tokenName: (id: number) => string;
}

/** Position of a writer between two documents, from which it can resume. */
export interface ShardWriterState {
  /** Finished shards. */
  finished: number;
  open: { documents: number; tokens: number; bytes: number; counted?: number } | null;
}

/** Writes the shards of one split, one after the other. */
export class ShardWriter {
  readonly #options: ShardWriterOptions;
  readonly #shards: ShardEntry[];
  #current: OpenShard | null = null;

  constructor(options: ShardWriterOptions) {
    this.#options = options;
    this.#shards = [];
  }

  /**
   * Opens a writer at an earlier state. Everything written after that state is removed.
   * @param shards entries of the finished shards, and possibly of later ones
   */
  static async resume(
    options: ShardWriterOptions,
    { finished, open }: ShardWriterState,
    shards: readonly ShardEntry[],
  ): Promise<ShardWriter> {
    const writer = new ShardWriter(options);
    for (const shard of shards.slice(0, finished)) writer.#shards.push(shard);
    if (open !== null) writer.#current = await OpenShard.resume(options, finished, open);
    return writer;
  }

  /** Finished shards. */
  get shards(): readonly ShardEntry[] {
    return this.#shards;
  }

  /** Current state. Valid only between documents. */
  get state(): ShardWriterState {
    const open = this.#current && { ...this.#current.counts };
    return { finished: this.#shards.length, open };
  }

  /**
   * Begins a document.
   * @param bytes UTF-8 length of its text
   */
  async begin(bytes: number): Promise<void> {
    this.#current ??= await OpenShard.create(this.#options, this.#shards.length);
    await this.#current.begin(bytes);
  }

  /** @param counted for each id its bits in the mask (`maskBits`); only for a masked split */
  async append(ids: StoredIds, counted?: Uint8Array): Promise<void> {
    await (this.#current as OpenShard).append(ids, counted);
  }

  /** Ends the document, and the shard if it has become long enough. */
  async end(): Promise<void> {
    if ((this.#current as OpenShard).tokens >= this.#options.shardTokens) await this.#close();
  }

  /** Makes everything written so far durable. */
  async sync(): Promise<void> {
    await this.#current?.sync();
  }

  async finish(): Promise<SplitEntry> {
    await this.#close();
    const sum = (field: "tokens" | "documents" | "bytes"): number =>
      this.#shards.reduce((total, shard) => total + shard[field], 0);
    return {
      tokens: sum("tokens"),
      documents: sum("documents"),
      bytes: sum("bytes"),
      shards: this.#shards,
    };
  }

  /** Closes the files without finishing the shard. */
  async abandon(): Promise<void> {
    await this.#current?.abandon();
    this.#current = null;
  }

  async #close(): Promise<void> {
    if (this.#current === null) return;
    const shard = this.#current;
    this.#current = null;
    this.#shards.push(await shard.close());
  }
}

class OpenShard {
  readonly counts: NonNullable<ShardWriterState["open"]> = { documents: 0, tokens: 0, bytes: 0 };
  readonly #options: ShardWriterOptions;
  readonly #file: string;
  readonly #data: HashedFile;
  readonly #index: HashedFile;
  /** One byte per token; null without a mask. */
  readonly #mask: HashedFile | null;
  readonly #runs = new RunCounter();

  private constructor(
    options: ShardWriterOptions,
    file: string,
    files: { data: HashedFile; index: HashedFile; mask: HashedFile | null },
  ) {
    this.#options = options;
    this.#file = file;
    this.#data = files.data;
    this.#index = files.index;
    this.#mask = files.mask;
    if (files.mask) this.counts.counted = 0;
  }

  static async create(options: ShardWriterOptions, number: number): Promise<OpenShard> {
    const file = shardFile(options.split, number);
    const paths = [file, indexFile(file), maskFile(file)].map((name) => join(options.folder, name));
    await expectUnmoved(options.identity);
    for (const path of paths) await rm(path, { force: true });
    const data = await HashedFile.create(paths[0] as string, bytesPerId[options.dtype]);
    const index = await HashedFile.create(paths[1] as string, indexEntryBytes);
    const mask = options.masked ? await HashedFile.create(paths[2] as string, 1) : null;
    return new OpenShard(options, file, { data, index, mask });
  }

  static async resume(
    options: ShardWriterOptions,
    number: number,
    counts: NonNullable<ShardWriterState["open"]>,
  ): Promise<OpenShard> {
    const file = shardFile(options.split, number);
    const size = bytesPerId[options.dtype];
    const runs = new RunCounter();
    const data = await HashedFile.resume(
      join(options.folder, file),
      size,
      counts.tokens * size,
      (bytes) => runs.add(idsOf(bytes, options.dtype)),
    );
    const index = await HashedFile.resume(
      join(options.folder, indexFile(file)),
      indexEntryBytes,
      counts.documents * indexEntryBytes,
    );
    const mask = options.masked
      ? await HashedFile.resume(join(options.folder, maskFile(file)), 1, counts.tokens)
      : null;
    const shard = new OpenShard(options, file, { data, index, mask });
    Object.assign(shard.counts, counts);
    shard.#runs.take(runs);
    return shard;
  }

  get tokens(): number {
    return this.counts.tokens;
  }

  async begin(bytes: number): Promise<void> {
    await this.#index.write(startEntry(this.counts.tokens));
    this.counts.documents++;
    this.counts.bytes += bytes;
  }

  async append(ids: StoredIds, counted?: Uint8Array): Promise<void> {
    this.counts.tokens += ids.length;
    this.#runs.add(ids);
    await this.#data.write(new Uint8Array(ids.buffer, ids.byteOffset, ids.byteLength));
    if (this.#mask === null || counted === undefined) return;
    this.counts.counted = counted.reduce(
      (sum, bits) => sum + (bits & maskBits.counted),
      this.counts.counted ?? 0,
    );
    await this.#mask.write(counted);
  }

  async sync(): Promise<void> {
    await this.#data.sync();
    await this.#index.sync();
    await this.#mask?.sync();
  }

  async close(): Promise<ShardEntry> {
    try {
      this.#runs.finish();
      this.#checkRuns();
      await this.#index.write(startEntry(this.counts.tokens));
      const sha256 = await this.#data.finish();
      const indexSha256 = await this.#index.finish();
      const maskSha256 = await this.#mask?.finish();
      const { documents, tokens, bytes, counted } = this.counts;
      const repeatedTokens = this.#runs.repeated;
      const counts = { tokens, documents, bytes };
      const mask = maskSha256 !== undefined && { counted, maskSha256 };
      return { file: this.#file, ...counts, sha256, indexSha256, repeatedTokens, ...mask };
    } finally {
      await this.abandon();
    }
  }

  async abandon(): Promise<void> {
    await this.#data.close();
    await this.#index.close();
    await this.#mask?.close();
  }

  #checkRuns(): void {
    const share = this.#runs.repeated / this.tokens;
    if (share <= this.#options.maxRunShare) return;
    const worst = this.#runs.worst();
    const percent = (value: number): string => `${(100 * value).toFixed(1)}%`;
    throw new DataError(
      `[prepare] ${percent(share)} of the ${this.tokens} tokens of ${this.#file} stand in runs of ${minRunLength} or ` +
        `more of one token, most of all ${worst} (${JSON.stringify(this.#options.tokenName(worst))}); at most ` +
        `${percent(this.#options.maxRunShare)} may: padding or junk in the text? Clean it, or raise ${optionName("maxRunShare")}`,
    );
  }
}

/** Views bytes at any alignment as ids of the dtype. */
export function idsOf(bytes: Uint8Array, dtype: TokenDType): StoredIds {
  const size = bytesPerId[dtype];
  const aligned = bytes.byteOffset % size === 0 ? bytes : Uint8Array.from(bytes);
  const make = dtype === "uint16" ? Uint16Array : Uint32Array;
  return new make(
    aligned.buffer as ArrayBuffer,
    aligned.byteOffset,
    Math.floor(aligned.byteLength / size),
  );
}

function startEntry(tokens: number): Uint8Array {
  return new Uint8Array(BigUint64Array.of(BigInt(tokens)).buffer);
}
