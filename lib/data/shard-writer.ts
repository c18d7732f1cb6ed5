import { createHash, type Hash } from "node:crypto";
import { type FileHandle, open } from "node:fs/promises";
import { endianness } from "node:os";
import { join } from "node:path";
import { DataError } from "../errors.js";
import {
  bytesPerId,
  indexFile,
  type ShardEntry,
  type Split,
  type SplitEntry,
  shardFile,
  type TokenDType,
} from "./dataset-file.js";

/** A run of one token counts as padding or junk from this length on. */
export const minRunLength = 32;

/** Adds up the tokens that stand in runs of at least `minRunLength` equal ones, and remembers the worst token. */
export class RunCounter {
  repeated = 0;
  #token = -1;
  #length = 0;
  readonly #byToken = new Map<number, number>();

  add(ids: Int32Array): void {
    for (const id of ids) {
      if (id === this.#token) {
        this.#length++;
      } else {
        this.finish();
        this.#token = id;
        this.#length = 1;
      }
    }
  }

  finish(): void {
    if (this.#length >= minRunLength) {
      this.repeated += this.#length;
      this.#byToken.set(this.#token, (this.#byToken.get(this.#token) ?? 0) + this.#length);
    }
    this.#token = -1;
    this.#length = 0;
  }

  /** The token with the most tokens in runs. */
  worst(): number {
    let worst = -1;
    for (const [token, count] of this.#byToken) {
      if (worst < 0 || count > (this.#byToken.get(worst) as number)) worst = token;
    }
    return worst;
  }
}

export interface ShardWriterOptions {
  folder: string;
  split: Split;
  dtype: TokenDType;
  /** A shard ends with the first document that brings it to this many tokens. */
  shardTokens: number;
  /** Largest share of a shard's tokens that may stand in runs of one token. */
  maxRunShare: number;
  /** The name of a token, for the message about runs. */
  tokenName: (id: number) => string;
}

/** Writes the shards of one split, one after the other. */
export class ShardWriter {
  readonly #options: ShardWriterOptions;
  readonly #shards: ShardEntry[] = [];
  #current: OpenShard | null = null;

  constructor(options: ShardWriterOptions) {
    this.#options = options;
  }

  get tokens(): number {
    return this.#shards.reduce((total, shard) => total + shard.tokens, this.#current?.tokens ?? 0);
  }

  /** @param ids   of one document with its end @param bytes of its text */
  async add(ids: Int32Array, bytes: number): Promise<void> {
    this.#current ??= await OpenShard.create(this.#options, this.#shards.length);
    await this.#current.add(ids, bytes);
    if (this.#current.tokens >= this.#options.shardTokens) await this.#close();
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

  /** Closes the files without finishing them. */
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
  tokens = 0;
  readonly #options: ShardWriterOptions;
  readonly #file: string;
  readonly #data: FileHandle;
  readonly #hash: Hash = createHash("sha256");
  readonly #starts: number[] = [];
  readonly #runs = new RunCounter();
  #bytes = 0;

  private constructor(options: ShardWriterOptions, file: string, data: FileHandle) {
    this.#options = options;
    this.#file = file;
    this.#data = data;
  }

  static async create(options: ShardWriterOptions, index: number): Promise<OpenShard> {
    const file = shardFile(options.split, index);
    return new OpenShard(options, file, await open(join(options.folder, file), "wx"));
  }

  async add(ids: Int32Array, bytes: number): Promise<void> {
    this.#starts.push(this.tokens);
    this.tokens += ids.length;
    this.#bytes += bytes;
    this.#runs.add(ids);
    const encoded = toLittleEndian(ids, this.#options.dtype);
    this.#hash.update(encoded);
    await writeAll(this.#data, encoded);
  }

  async close(): Promise<ShardEntry> {
    try {
      this.#runs.finish();
      this.#checkRuns();
      await this.#data.sync();
    } finally {
      await this.#data.close();
    }
    const index = Buffer.from(
      BigUint64Array.from([...this.#starts, this.tokens], (start) => BigInt(start)).buffer,
    );
    if (endianness() === "BE") index.swap64();
    const indexData = await open(join(this.#options.folder, indexFile(this.#file)), "wx");
    try {
      await writeAll(indexData, index);
      await indexData.sync();
    } finally {
      await indexData.close();
    }
    return {
      file: this.#file,
      tokens: this.tokens,
      documents: this.#starts.length,
      bytes: this.#bytes,
      sha256: this.#hash.digest("hex"),
      indexSha256: createHash("sha256").update(index).digest("hex"),
      repeatedTokens: this.#runs.repeated,
    };
  }

  async abandon(): Promise<void> {
    await this.#data.close();
  }

  #checkRuns(): void {
    const share = this.#runs.repeated / this.tokens;
    if (share <= this.#options.maxRunShare) return;
    const worst = this.#runs.worst();
    const percent = (value: number): string => `${(100 * value).toFixed(1)}%`;
    throw new DataError(
      `[prepare] ${percent(share)} of the ${this.tokens} tokens of ${this.#file} stand in runs of ${minRunLength} or ` +
        `more of one token, most of all ${worst} (${JSON.stringify(this.#options.tokenName(worst))}); at most ` +
        `${percent(this.#options.maxRunShare)} may: padding or junk in the text? Clean it, or raise maxRunShare`,
    );
  }
}

function toLittleEndian(ids: Int32Array, dtype: TokenDType): Buffer {
  const array = dtype === "uint16" ? Uint16Array.from(ids) : Uint32Array.from(ids);
  const bytes = Buffer.from(array.buffer, array.byteOffset, ids.length * bytesPerId[dtype]);
  if (endianness() === "BE") return dtype === "uint16" ? bytes.swap16() : bytes.swap32();
  return bytes;
}

/** `write` may write a part only. */
async function writeAll(file: FileHandle, bytes: Buffer): Promise<void> {
  let at = 0;
  while (at < bytes.length) at += (await file.write(bytes, at, bytes.length - at)).bytesWritten;
}
