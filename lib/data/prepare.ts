import { mkdir, open, rm } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { ArgumentError, DataError, LlamaForgeError, UsageError } from "../errors.js";
import {
  type DatasetFile,
  datasetFileName,
  datasetFormat,
  datasetVersion,
  type Split,
  serialiseDatasetFile,
} from "./dataset-file.js";
import { type HoldOut, hashFraction, movedThreshold } from "./hold-out.js";
import { acquireLock } from "./lock.js";
import { checkTarget, publish, syncFolder } from "./publish.js";
import { batched } from "./readers/batched.js";
import { type Input, openReader, type Reader } from "./readers/index.js";
import { ShardWriter } from "./shard-writer.js";
import { Tokenizer } from "./tokenizer.js";
import type { InvalidUtf8 } from "./utf8.js";

export interface PrepareOptions {
  /** Files and folders, read in this order. */
  inputs: readonly (string | Input)[];
  /** Folder of the data set: made whole or not at all; a data set that is there is replaced. */
  out: string;
  /** A tokenizer, or the path of one. */
  tokenizer: Tokenizer | string;
  /** Share of the documents to hold out for validation. Default: 0.05. */
  validationFraction?: number;
  /** A shard ends with the first document that brings it to this many tokens. Default: 2^27, 256 MiB. */
  shardTokens?: number;
  /** Refuse a shard if more of it stands in runs of one token. Default: 0.1. */
  maxRunShare?: number;
  /** Bytes that are no UTF-8: refuse the file (default), or put U+FFFD in their place. */
  invalidUtf8?: InvalidUtf8;
  /** Replace what is in `out` even if it is no data set. */
  overwrite?: boolean;
  onProgress?: (progress: PrepareProgress) => void;
  /** Stops the work; nothing is left of it. */
  signal?: AbortSignal;
}

export interface PrepareProgress {
  documents: number;
  /** Text read so far, and in all, in bytes. */
  bytes: number;
  totalBytes: number;
  tokens: number;
}

export interface PrepareResult {
  folder: string;
  dataset: DatasetFile;
  /** What the user should know although it is no error. */
  warnings: string[];
}

/**
 * Turns text into token shards. The same input gives the same bytes.
 *
 * Whether a document is held out depends on its own bytes alone (their hash), so adding or reordering documents moves
 * none from one side to the other, and copies of a document stay together. If that leaves one side without any of
 * two or more documents, the threshold is moved just past the nearest one.
 *
 * @throws DataError for missing, empty, unreadable or repetitive text; UsageError if `out` cannot be used
 */
export async function prepare(options: PrepareOptions): Promise<PrepareResult> {
  const settings = check(options);
  const tokenizer =
    typeof options.tokenizer === "string"
      ? await Tokenizer.load(options.tokenizer)
      : options.tokenizer;
  const out = resolve(options.out);
  const inputs = options.inputs.map((input) =>
    typeof input === "string" ? { path: input } : input,
  );
  await checkTarget(
    out,
    inputs.map((input) => input.path),
    options.overwrite ?? false,
  );
  await mkdir(dirname(out), { recursive: true }).catch((cause: NodeJS.ErrnoException) => {
    throw new UsageError(`[prepare] cannot make ${dirname(out)}: ${cause.message}`, { cause });
  });
  const lock = await acquireLock(`${out}.lock`, `[prepare] ${options.out}`);
  const folder = `${out}.tmp`;
  try {
    const work = new Preparation(inputs, folder, tokenizer, settings, options);
    const result = await work.run();
    await publish(folder, out);
    return { ...result, folder: options.out };
  } catch (error) {
    await rm(folder, { recursive: true, force: true });
    throw typed(error, folder);
  } finally {
    await lock.release();
  }
}

/** Errors of the file system (a full disk, say) as errors of the library. */
function typed(error: unknown, folder: string): unknown {
  if (
    error instanceof LlamaForgeError ||
    typeof (error as NodeJS.ErrnoException).syscall !== "string"
  ) {
    return error;
  }
  return new DataError(`[prepare] cannot write ${folder}: ${(error as Error).message}`, {
    cause: error,
  });
}

type Settings = Required<
  Pick<PrepareOptions, "validationFraction" | "shardTokens" | "maxRunShare" | "invalidUtf8">
>;

function check(options: PrepareOptions): Settings {
  const settings: Settings = {
    validationFraction: options.validationFraction ?? 0.05,
    shardTokens: options.shardTokens ?? 2 ** 27,
    maxRunShare: options.maxRunShare ?? 0.1,
    invalidUtf8: options.invalidUtf8 ?? "error",
  };
  const { validationFraction, shardTokens, maxRunShare, invalidUtf8 } = settings;
  const refuse = (name: string, expected: string, got: unknown): never => {
    throw new ArgumentError(`[prepare] expected ${expected} for ${name}, got ${String(got)}`);
  };
  if (options.inputs.length === 0) refuse("inputs", "at least one path", "none");
  if (!(validationFraction >= 0 && validationFraction < 1)) {
    refuse("validationFraction", "a number in 0 <= x < 1", validationFraction);
  }
  if (!Number.isSafeInteger(shardTokens) || shardTokens < 1) {
    refuse("shardTokens", "a whole number from 1 on", shardTokens);
  }
  if (!(maxRunShare >= 0 && maxRunShare <= 1)) {
    refuse("maxRunShare", "a number in 0..1", maxRunShare);
  }
  if (invalidUtf8 !== "error" && invalidUtf8 !== "replace") {
    refuse("invalidUtf8", '"error" or "replace"', invalidUtf8);
  }
  return settings;
}

/** What one pass over the documents yields. */
interface Pass extends HoldOut {
  splits: DatasetFile["splits"];
  sources: DatasetFile["sources"];
}

class Preparation {
  readonly #inputs: readonly Input[];
  readonly #folder: string;
  readonly #tokenizer: Tokenizer;
  readonly #settings: Settings;
  readonly #options: PrepareOptions;

  constructor(
    inputs: readonly Input[],
    folder: string,
    tokenizer: Tokenizer,
    settings: Settings,
    options: PrepareOptions,
  ) {
    this.#inputs = inputs;
    this.#folder = folder;
    this.#tokenizer = tokenizer;
    this.#settings = settings;
    this.#options = options;
  }

  async run(): Promise<{ dataset: DatasetFile; warnings: string[] }> {
    const warnings: string[] = [];
    const fraction = this.#settings.validationFraction;
    let threshold = fraction;
    let pass = await this.#write(threshold);
    if (fraction > 0) {
      const moved = movedThreshold(pass, pass.splits);
      if (moved !== null) {
        threshold = moved;
        pass = await this.#write(threshold);
        const { train, validation: heldOut } = pass.splits;
        warnings.push(
          `too few documents for a validation share of ${fraction}: ` +
            `${heldOut.documents} of ${train.documents + heldOut.documents} held out`,
        );
      } else if (pass.splits.validation.documents === 0) {
        warnings.push("all text is one document: none is held out for validation");
      }
    }
    for (const source of pass.sources) {
      if (source.emptyFiles > 0) {
        warnings.push(`${source.path}: skipped ${source.emptyFiles} empty files`);
      }
    }
    const dataset = await this.#finish(pass, threshold);
    return { dataset, warnings };
  }

  /** Reads all documents and writes their shards, held out below the threshold. */
  async #write(threshold: number): Promise<Pass> {
    await rm(this.#folder, { recursive: true, force: true });
    await mkdir(this.#folder, { recursive: true });
    const tokenizer = this.#tokenizer;
    const writer = (split: Split): ShardWriter =>
      new ShardWriter({
        folder: this.#folder,
        split,
        dtype: tokenizer.vocabSize <= 65536 ? "uint16" : "uint32",
        shardTokens: this.#settings.shardTokens,
        maxRunShare: this.#settings.maxRunShare,
        tokenName: (id) => tokenizer.token(id),
      });
    const writers = { train: writer("train"), validation: writer("validation") };
    const readers: Reader[] = [];
    for (const input of this.#inputs) readers.push(await openReader(input, this.#settings));

    const progress: PrepareProgress = {
      documents: 0,
      bytes: 0,
      totalBytes: readers.reduce((sum, reader) => sum + reader.totalBytes, 0),
      tokens: 0,
    };
    const sources: DatasetFile["sources"] = [];
    let lowestHash = 1;
    let highestHash = 0;
    try {
      for (const [index, reader] of readers.entries()) {
        const { path, kind = "text" } = this.#inputs[index] as Input;
        const before = { ...progress };
        for await (const batch of batched(reader.documents())) {
          this.#options.signal?.throwIfAborted();
          const encoded = await tokenizer.encodeBatch(
            batch.map((document) => document.text),
            { eos: true },
          );
          for (const [place, document] of batch.entries()) {
            const ids = encoded[place] as Int32Array;
            const hash = hashFraction(document.text);
            lowestHash = Math.min(lowestHash, hash);
            highestHash = Math.max(highestHash, hash);
            await writers[hash < threshold ? "validation" : "train"].add(ids, document.bytes);
            progress.documents++;
            progress.bytes += document.bytes;
            progress.tokens += ids.length;
          }
          this.#options.onProgress?.({ ...progress });
        }
        sources.push({
          path,
          kind,
          documents: progress.documents - before.documents,
          bytes: progress.bytes - before.bytes,
          emptyFiles: reader.emptyFiles,
        });
      }
      if (progress.documents === 0) {
        const paths = this.#inputs.map((input) => input.path).join(", ");
        throw new DataError(`[prepare] no text in ${paths}: every file is empty`);
      }
      const splits = {
        train: await writers.train.finish(),
        validation: await writers.validation.finish(),
      };
      return { splits, sources, lowestHash, highestHash };
    } catch (error) {
      await writers.train.abandon();
      await writers.validation.abandon();
      throw error;
    }
  }

  /** The tokenizer's files and dataset.json, which makes the folder a data set. */
  async #finish(pass: Pass, threshold: number): Promise<DatasetFile> {
    const tokenizer = this.#tokenizer;
    const files = await tokenizer.copyTo(this.#folder);
    const dataset: DatasetFile = {
      format: datasetFormat,
      version: datasetVersion,
      dtype: tokenizer.vocabSize <= 65536 ? "uint16" : "uint32",
      vocabSize: tokenizer.vocabSize,
      eosId: tokenizer.eosId,
      bosId: tokenizer.bosId,
      documentStart: "none",
      documentEnd: "eos",
      tokenizer: { sha256: tokenizer.sha256, files },
      validation: { fraction: this.#settings.validationFraction, threshold },
      splits: pass.splits,
      sources: pass.sources,
    };
    const file = await open(join(this.#folder, datasetFileName), "wx");
    try {
      await file.writeFile(serialiseDatasetFile(dataset));
      await file.sync();
    } finally {
      await file.close();
    }
    await syncFolder(this.#folder);
    return dataset;
  }
}
