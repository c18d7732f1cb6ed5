import { createHash } from "node:crypto";
import {
  argumentError,
  checkBoolean,
  checkInteger,
  checkMade,
  checkObject,
  checkOptions,
} from "../core/check-values.js";
import { type Device, defaultDevice, isDevice } from "../core/device.js";
import { ArgumentError, DataError } from "../core/errors.js";
import { hostArray } from "../core/host-array.js";
import type { Batch } from "../model/batch.js";
import { Apportionment } from "./apportion.js";
import { maskBits, type Split } from "./dataset-file.js";
import { type DocumentOptions, Loader, type LoaderOptions } from "./loader.js";
import { Permutation } from "./sampler.js";
import { type DatasetChats, TokenDataset } from "./shards.js";
import type { DocumentMarks, WindowRows } from "./windows.js";

export interface MixtureOptions extends DocumentOptions {
  /** T: a window has T inputs and T targets. */
  sequenceLength: number;
  /** Of pairs: the most tokens of one answer with its prompt. Default: sequenceLength. */
  contextLength?: number;
  /** Seed of the order of the windows. Default: 3407. */
  seed?: number;
  /** Default: "train". */
  split?: Split;
  /** Device for the tensors of `next`. Default: the default device. */
  device?: Device;
  /** The part of every micro-batch that `next` returns. Default: rank 0 of 1. */
  rank?: number;
  worldSize?: number;
}

/** A data set of a mixture, with its share of the windows. */
export interface MixtureSource {
  readonly folder: string;
  /** Share of the positions; the shares add up to 1. */
  readonly share: number;
  readonly dataset: TokenDataset;
}

/** The source, epoch and window at a position. */
export interface Place {
  /** Index into `sources`. */
  source: number;
  /** Number of complete passes over the source before this position. */
  epoch: number;
  window: number;
}

function checkMixtureOptions(options: MixtureOptions): void {
  const op = "mixture";
  checkObject(op, "options", options);
  checkOptions(op, options, mixtureOptionNames);
  const { seed = 0, device, rank = 0, worldSize = 1 } = options;
  const { maskDocuments = false, resetPositions = false } = options;
  checkInteger(op, "seed", seed, { min: 0 });
  if (device !== undefined && !isDevice(device))
    throw argumentError(op, "a device", "device", device);
  checkInteger(op, "worldSize", worldSize, { min: 1 });
  checkInteger(op, "rank", rank, { min: 0, max: worldSize - 1 });
  checkBoolean(op, "maskDocuments", maskDocuments);
  checkBoolean(op, "resetPositions", resetPositions);
}

const mixtureOptionNames = [
  "sequenceLength",
  "contextLength",
  "seed",
  "split",
  "device",
  "rank",
  "worldSize",
  "maskDocuments",
  "resetPositions",
];

/**
 * Data sets mixed by weight into one endless sequence of windows. A position alone determines its
 * window. `Apportionment`, whose counts are exact in every prefix, gives the source; a permutation
 * of the source's windows for each epoch gives the window. Resuming from a checkpoint therefore
 * needs one integer, and the sequence does not depend on the number of ranks. Every epoch of a
 * source visits each of its windows once.
 *
 * The order of the sequence depends on the data and weights, not on the folders' names or on the
 * order in which they are listed.
 */
export class Mixture {
  readonly sources: readonly MixtureSource[];
  readonly sequenceLength: number;
  readonly seed: number;
  readonly split: Split;
  readonly vocabSize: number;
  readonly eosId: number;
  readonly tokenizerSha256: string;
  /**
   * UTF-8 bytes per token, weighted by share; 0 unless known for all sources. Bits per byte = loss
   * / ln 2 / bytesPerToken.
   */
  readonly bytesPerToken: number;
  /** Number of windows in all sources. */
  readonly windows: number;
  /** Hash of everything that the sequence depends on: tokens, weights, sequence length and seed. */
  readonly fingerprint: string;
  readonly #options: Required<
    Pick<MixtureOptions, "device" | "rank" | "worldSize" | "maskDocuments" | "resetPositions">
  >;
  readonly #apportionment: Apportionment;
  readonly #keys: readonly number[];
  /**
   * Permutations of the latest epochs of each source. Reading ahead may be one epoch ahead of the
   * consumer.
   */
  readonly #permutations: Map<number, Permutation>[];
  #loader: { loader: Loader; batchSize: number } | null = null;
  #position = 0;

  private constructor(
    datasets: readonly { weight: number; dataset: TokenDataset }[],
    options: MixtureOptions,
  ) {
    checkMade(
      "Mixture",
      "Mixture.open()",
      Array.isArray(datasets) && datasets[0]?.dataset instanceof TokenDataset,
    );
    const sorted = [...datasets].sort(
      (a, b) => b.weight - a.weight || (a.dataset.fingerprint < b.dataset.fingerprint ? -1 : 1),
    );
    const weights = sorted.map(({ weight }) => weight);
    this.#apportionment = new Apportionment(weights);
    const largest = weights[0] as number;
    const sum = weights.reduce((total, weight) => total + weight / largest, 0);
    this.sources = sorted.map(({ weight, dataset }) => ({
      folder: dataset.folder,
      share: weight / largest / sum,
      dataset,
    }));
    const first = (this.sources[0] as MixtureSource).dataset;
    for (const { dataset } of this.sources) checkAgreement(first, dataset);
    checkTemplates(this.sources.map(({ dataset }) => dataset));
    this.sequenceLength = options.sequenceLength;
    this.seed = options.seed ?? 3407;
    this.split = options.split ?? "train";
    this.#options = {
      device: options.device ?? defaultDevice(),
      rank: options.rank ?? 0,
      worldSize: options.worldSize ?? 1,
      maskDocuments: options.maskDocuments ?? false,
      resetPositions: options.resetPositions ?? false,
    };
    this.vocabSize = first.vocabSize;
    this.eosId = first.eosId;
    this.tokenizerSha256 = first.tokenizerSha256;
    this.windows = this.sources.reduce((total, { dataset }) => total + dataset.windows, 0);
    const known = this.sources.every(({ dataset }) => dataset.bytesPerToken > 0);
    this.bytesPerToken = this.sources.reduce(
      (total, { share, dataset }) => total + (known ? share * dataset.bytesPerToken : 0),
      0,
    );
    this.#keys = this.sources.map(({ dataset }) =>
      Number.parseInt(dataset.fingerprint.slice(0, 12), 16),
    );
    this.#permutations = this.sources.map(() => new Map());
    const digest = createHash("sha256").update(
      `${this.sequenceLength} ${this.seed} ${this.split}\n`,
    );
    for (const [index, { dataset }] of this.sources.entries()) {
      digest.update(`${weights[index]} ${dataset.fingerprint}\n`);
    }
    this.fingerprint = digest.digest("hex");
  }

  /**
   * Opens data sets as one mixture.
   * @param sources a data set's folder or description, or several with their weights; only the
   *   proportions of the weights matter
   * @throws DataError if a data set is damaged, or if the data sets do not fit together
   */
  static async open(
    sources: string | Readonly<Record<string, number>>,
    options: MixtureOptions,
  ): Promise<Mixture> {
    checkMixtureOptions(options);
    if (typeof sources !== "string") {
      checkObject("mixture", "sources", sources, "a folder, or folders with their weights");
    }
    const weights = Object.entries(typeof sources === "string" ? { [sources]: 1 } : sources);
    // Checks the weights before any file is opened.
    new Apportionment(weights.map(([, weight]) => weight));
    const opened: { weight: number; dataset: TokenDataset }[] = [];
    for (const [folder, weight] of weights) {
      const dataset = await TokenDataset.open(folder, options);
      const twin = opened.find((other) => other.dataset.fingerprint === dataset.fingerprint);
      if (twin !== undefined) {
        throw new DataError(
          `[mixture] ${folder} and ${twin.dataset.folder} hold the same tokens: name one, with the sum of the weights`,
        );
      }
      opened.push({ weight, dataset });
    }
    return new Mixture(opened, options);
  }

  /** The source, epoch and window at a position. */
  locate(position: number): Place {
    checkInteger("mixture", "position", position, { min: 0 });
    const { source, ordinal } = this.#apportionment.at(position);
    const { windows } = (this.sources[source] as MixtureSource).dataset;
    const epoch = Math.floor(ordinal / windows);
    return { source, epoch, window: this.#order(source, epoch).at(ordinal - epoch * windows) };
  }

  /** Number of passes over each source before a position, with fractions. */
  epochsAt(position: number): number[] {
    checkInteger("mixture", "position", position, { min: 0 });
    return this.sources.map(
      ({ dataset }, source) => this.#apportionment.count(source, position) / dataset.windows,
    );
  }

  /** Reads the windows at `count` positions: `count` rows of T+1 ids. */
  async read(position: number, count: number): Promise<Int32Array> {
    const length = this.sequenceLength + 1;
    checkInteger("mixture", "position", position, { min: 0 });
    checkInteger("mixture", "count", count, { min: 0 });
    const rows = hostArray("mixture", Int32Array, count * length);
    const reads: Promise<void>[] = [];
    for (let row = 0; row < count; row++) {
      const { source, window } = this.locate(position + row);
      const { dataset } = this.sources[source] as MixtureSource;
      reads.push(dataset.read(window, rows.subarray(row * length, (row + 1) * length)));
    }
    await Promise.all(reads);
    return rows;
  }

  /** Reads like `read`, with the facts about the ids if any of the windows holds chats. */
  async readRows(position: number, count: number): Promise<WindowRows> {
    if (!this.sources.some(({ dataset }) => dataset.chats)) {
      return { ids: await this.read(position, count) };
    }
    checkInteger("mixture", "position", position, { min: 0 });
    checkInteger("mixture", "count", count, { min: 0 });
    const length = this.sequenceLength + 1;
    const ids = hostArray("mixture", Int32Array, count * length);
    const mask = hostArray("mixture", Uint8Array, count * length).fill(maskBits.counted);
    const starts = hostArray("mixture", Int32Array, count * length);
    const rows: boolean[] = [];
    const reads: Promise<void>[] = [];
    for (let row = 0; row < count; row++) {
      const { source, window } = this.locate(position + row);
      const { dataset } = this.sources[source] as MixtureSource;
      const [from, to] = [row * length, (row + 1) * length];
      const into = ids.subarray(from, to);
      rows.push(dataset.chats !== null);
      reads.push(
        dataset.chats
          ? dataset.readChats(window, into, mask.subarray(from, to), starts.subarray(from, to))
          : dataset.read(window, into),
      );
    }
    await Promise.all(reads);
    const pairs = this.chats?.pairs === true;
    return { ids, chats: { rows, mask, starts, ...(pairs && { pairs }) } };
  }

  /** Facts about the chats; null if no source holds chats. All sources have one template. */
  get chats(): DatasetChats | null {
    return this.sources.find(({ dataset }) => dataset.chats)?.dataset.chats ?? null;
  }

  /** The ids that separate documents in the window at a position. */
  marksAt(position: number): DocumentMarks {
    checkInteger("mixture", "position", position, { min: 0 });
    return (this.sources[this.#apportionment.at(position).source] as MixtureSource).dataset.marks;
  }

  /** Position of the next micro-batch of `next`. Save it, and set it when resuming. */
  get position(): number {
    return this.#position;
  }

  set position(position: number) {
    if (!Number.isSafeInteger(position) || position < 0) {
      throw new ArgumentError(
        `[mixture] expected a position in 0..2^53-1, got ${String(position)}`,
      );
    }
    this.#position = position;
    this.#drop();
  }

  /**
   * This rank's part of the next global micro-batch, read ahead in the background. Its tensors are
   * on the mixture's device, (microBatch, T) each, and belong to the caller's scope.
   */
  async next(microBatch: number): Promise<Batch> {
    if (this.#loader?.batchSize !== microBatch) this.#drop();
    this.#loader ??= { loader: this.loader(microBatch, this.#position), batchSize: microBatch };
    const batch = await this.#loader.loader.next();
    this.#position = batch.nextPosition;
    // The dynamic import lets programs prepare and inspect data without the native addon.
    const { batchTensors } = await import("../model/batch.js");
    return batchTensors(batch, this.#options.device);
  }

  /** Makes a loader of this mixture for its rank. */
  loader(
    batchSize: number,
    startPosition: number,
    options: Omit<LoaderOptions, "batchSize" | "startPosition"> = {},
  ): Loader {
    const { device: _, ...shared } = this.#options;
    return new Loader(this, {
      ...shared,
      ...options,
      batchSize,
      startPosition,
    });
  }

  /** Stops reading ahead and closes the files. */
  async close(): Promise<void> {
    const loader = this.#loader?.loader;
    this.#loader = null;
    await loader?.close();
    for (const { dataset } of this.sources) await dataset.close();
  }

  #drop(): void {
    void this.#loader?.loader.close();
    this.#loader = null;
  }

  #order(source: number, epoch: number): Permutation {
    const known = this.#permutations[source] as Map<number, Permutation>;
    let order = known.get(epoch);
    if (order === undefined) {
      const { windows } = (this.sources[source] as MixtureSource).dataset;
      order = new Permutation(windows, this.seed, this.#keys[source] as number, epoch);
      if (known.size >= 2) known.delete(Math.min(...known.keys()));
      known.set(epoch, order);
    }
    return order;
  }
}

function checkAgreement(first: TokenDataset, other: TokenDataset): void {
  for (const field of ["tokenizerSha256", "vocabSize", "eosId"] as const) {
    if (first[field] !== other[field]) {
      throw new DataError(
        `[mixture] ${first.folder} and ${other.folder} were made with different tokenizers: ` +
          `${field} is ${first[field]} and ${other[field]}`,
      );
    }
  }
}

/** Chats of one run are written by one template. Pairs are mixed with nothing else. */
function checkTemplates(datasets: readonly TokenDataset[]): void {
  const pairs = datasets.find(({ chats }) => chats?.pairs);
  const single = datasets.find(({ chats }) => !chats?.pairs);
  if (pairs && single) {
    throw new DataError(
      `[mixture] ${pairs.folder} holds preferences and ${single.folder} does not: a run learns from one or the other`,
    );
  }
  const [first, ...others] = datasets.filter(({ chats }) => chats !== null);
  for (const other of others) {
    if (other.chats?.templateSha256 === first?.chats?.templateSha256) continue;
    throw new DataError(
      `[mixture] ${first?.folder} and ${other.folder} were written by different chat templates: ` +
        "prepare both with one",
    );
  }
}
