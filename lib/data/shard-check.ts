import { createHash } from "node:crypto";
import { stat } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { DataError } from "../core/errors.js";
import { replaceFile } from "../files/replace-file.js";
import { openRegular, readSmallFile, sizeLimits, utf8Of } from "../files/small-file.js";
import { changedFile } from "./verify.js";

/** A file whose content dataset.json names by its hash. */
export interface HashedFileEntry {
  path: string;
  sha256: string;
}

export interface ShardCheckOptions {
  /** The consequence of a file that differs: an error that ends the run, or a note. */
  onDamage: "stop" | "warn";
  /** Where it is kept how far a run has come; null: nowhere. */
  memory: string | null;
  onNotice: (message: string) => void;
  /** Bytes to hash before the first step. Default: 2^28. */
  firstBytes?: number;
}

/** Small enough to hash in less than a millisecond. */
const pieceBytes = 2 ** 18;
/** Read per second in the background: about a fiftieth of a core, and little beside what any storage gives. */
const backgroundBytesPerSecond = 2 ** 25;
/** Hashed before the first step, as far as the time lasts; so small data sets are hashed as a whole by then. */
const firstBytes = 2 ** 28;
const firstMs = 10_000;

/** How far a run has come: how many files in their order, and what they were. */
interface Remembered {
  files: number;
  stamp: string;
}

/**
 * Hashes the files of a run's data sets once, in their order, while the run trains: a bit that rots
 * in a shard leaves its size as it is, and its tokens are as good as any others.
 */
export class ShardCheck {
  /** Files that were hashed, by this run or before it was resumed. */
  checked = 0;
  /** Called when a file is found that is to end the run. */
  onFailure = (): void => {};
  readonly #files: readonly HashedFileEntry[];
  readonly #options: ShardCheckOptions;
  readonly #stop = new AbortController();
  /** What the checked files were: their hashes, sizes and times. */
  #stamp = createHash("sha256");
  #rememberedAt = 0;
  #work: Promise<void> = Promise.resolve();
  #failure: DataError | null = null;
  #ended = false;
  #bytes = 0;
  #started = 0;
  #paceFrom = 0;
  #behindFirst = (): void => {};

  constructor(files: readonly HashedFileEntry[], options: ShardCheckOptions) {
    this.#files = files;
    this.#options = options;
  }

  /** The error that is to end the run. */
  get failure(): DataError | null {
    return this.#failure;
  }

  get files(): number {
    return this.#files.length;
  }

  /**
   * Hashes the first 256 MB, but for no longer than 10 s, and goes on in the background.
   * @throws DataError naming a file that differs, if that is to stop the run
   */
  async start(): Promise<void> {
    this.#started = performance.now();
    const first = new Promise<void>((resolve) => {
      this.#behindFirst = resolve;
    });
    this.#work = this.#run();
    const late = new AbortController();
    try {
      const options = { signal: late.signal };
      const limit = sleep(firstMs, undefined, options).catch(() => {});
      await Promise.race([this.#work, first, limit]);
    } finally {
      late.abort();
    }
    if (this.#failure !== null) throw this.#failure;
  }

  /** Ends it. @param hangs whether a read may never end: then none is waited for */
  async close(hangs = false): Promise<void> {
    this.#stop.abort();
    if (!hangs) await this.#work;
    if (this.#ended || this.#failure !== null) return;
    this.#options.onNotice(
      `${this.checked} of the data's ${this.files} files were hashed by the end; ` +
        "the run hashes the rest when it goes on",
    );
  }

  async #run(): Promise<void> {
    const { onDamage, onNotice } = this.#options;
    try {
      await this.#skipKnown();
      let damaged = false;
      for (const file of this.#files.slice(this.checked)) {
        const stamp = await stampOf(file);
        const actual = await this.#hash(file.path);
        if (actual === null) return;
        if (actual === file.sha256) {
          this.checked++;
          this.#stamp.update(stamp);
          // The next run hashes the files behind a damaged one again.
          if (!damaged) await this.#remember(this.checked === this.files);
          continue;
        }
        damaged = true;
        const error = changedFile(file.path, actual, file.sha256);
        if (onDamage === "stop") {
          this.#failure = error;
          this.onFailure();
          return;
        }
        onNotice(`${error.message}; training goes on with what it holds now`);
      }
      this.#ended = true;
    } catch (error) {
      // The reads of the loader say what is wrong with the storage, and whether that ends the run.
      this.#ended = true;
      onNotice(`the data's hashes cannot be checked: ${(error as Error).message}`);
    }
  }

  /** The hash of a file; null if the check was closed meanwhile. */
  async #hash(path: string): Promise<string | null> {
    const digest = createHash("sha256");
    const buffer = Buffer.allocUnsafeSlow(pieceBytes);
    const handle = await openRegular(path);
    try {
      for (;;) {
        if (this.#stop.signal.aborted) return null;
        const { bytesRead } = await handle.read(buffer, 0, pieceBytes);
        if (bytesRead === 0) return digest.digest("hex");
        digest.update(buffer.subarray(0, bytesRead));
        this.#bytes += bytesRead;
        await this.#pace();
      }
    } finally {
      await handle.close();
    }
  }

  /** Waits where it is ahead of its rate. */
  async #pace(): Promise<void> {
    const now = performance.now();
    if (this.#paceFrom === 0) {
      const first = this.#options.firstBytes ?? firstBytes;
      if (this.#bytes < first && now - this.#started < firstMs) return;
      this.#behindFirst();
      this.#paceFrom = now;
      this.#bytes = 0;
      return;
    }
    const ahead = this.#paceFrom + (1000 * this.#bytes) / backgroundBytesPerSecond - now;
    if (ahead < 10) return;
    // Without a reference: no process stays alive for it. Closing ends the wait.
    const options = { ref: false, signal: this.#stop.signal };
    await sleep(ahead, undefined, options).catch(() => {});
  }

  /** Passes over the files that an earlier part of the run has hashed, if they are what they were then. */
  async #skipKnown(): Promise<void> {
    const memory = await this.#recall();
    if (memory === null || memory.files > this.#files.length) return;
    const stamp = createHash("sha256");
    for (const file of this.#files.slice(0, memory.files)) stamp.update(await stampOf(file));
    if (stamp.copy().digest("hex") !== memory.stamp) return;
    this.#stamp = stamp;
    this.checked = memory.files;
  }

  async #recall(): Promise<Remembered | null> {
    if (this.#options.memory === null) return null;
    try {
      const memory = JSON.parse(
        utf8Of(await readSmallFile(this.#options.memory, { limit: sizeLimits.lock })),
      ) as Remembered;
      return Number.isSafeInteger(memory.files) && memory.files >= 0 ? memory : null;
    } catch {
      return null;
    }
  }

  /** Notes how far it is, but not for every one of many small files. */
  async #remember(atOnce: boolean): Promise<void> {
    const { memory } = this.#options;
    const now = performance.now();
    if (memory === null || (!atOnce && now - this.#rememberedAt < 2000)) return;
    this.#rememberedAt = now;
    const text = JSON.stringify({
      files: this.checked,
      stamp: this.#stamp.copy().digest("hex"),
    } satisfies Remembered);
    // Without it the next run only hashes once more.
    await replaceFile(memory, `${text}\n`).catch(() => {});
  }
}

/** What tells that a file has been written to since. */
async function stampOf({ path, sha256 }: HashedFileEntry): Promise<string> {
  const { size, mtimeMs } = await stat(path).catch((cause: Error) => {
    throw new DataError(`[data] cannot read ${path}: ${cause.message}`, { cause });
  });
  return `${sha256} ${size} ${mtimeMs}\n`;
}
