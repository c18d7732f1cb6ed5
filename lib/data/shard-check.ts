import { createHash } from "node:crypto";
import { stat } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { DataError } from "../core/errors.js";
import { replaceFile } from "../files/replace-file.js";
import { openRegular, readSmallFile, sizeLimits, utf8Of } from "../files/small-file.js";
import { changedFile } from "./verify.js";

/** A file whose SHA-256 is known from dataset.json. */
export interface HashedFileEntry {
  path: string;
  sha256: string;
}

export interface ShardCheckOptions {
  /** Consequence of a file that differs: an error that ends the run, or a warning. */
  onDamage: "stop" | "warn";
  /** Path of the file that remembers how far the run has come; null to remember nothing. */
  memory: string | null;
  onNotice: (message: string) => void;
  /** Bytes to hash before the first step. Default: 2^28. */
  firstBytes?: number;
}

/** Bytes per read: few enough to hash in less than a millisecond. */
const pieceBytes = 2 ** 18;
/**
 * Background reading rate. It takes about a fiftieth of a core, and little of any storage's
 * bandwidth.
 */
const backgroundBytesPerSecond = 2 ** 25;
/**
 * Bytes to hash before the first step, time permitting. Small data sets are thus hashed completely
 * by then.
 */
const firstBytes = 2 ** 28;
const firstMs = 10_000;

/** Progress of the check: the number of files checked, in order, and a stamp of them. */
interface Remembered {
  files: number;
  stamp: string;
}

/**
 * Hashes the files of a run's data sets once, in order, while the run trains. A bit that rots in a
 * shard does not change its size, and the damaged tokens look as good as any others.
 */
export class ShardCheck {
  /** Number of files checked, by this run or before it was resumed. */
  checked = 0;
  /** Called when a damaged file has to end the run. */
  onFailure = (): void => {};
  readonly #files: readonly HashedFileEntry[];
  readonly #options: ShardCheckOptions;
  readonly #stop = new AbortController();
  /** Stamp of the checked files: their hashes, sizes and times. */
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

  /** The error that has to end the run, if there is one. */
  get failure(): DataError | null {
    return this.#failure;
  }

  get files(): number {
    return this.#files.length;
  }

  /**
   * Hashes the first 256 MB for at most 10 s, and continues in the background.
   * @throws DataError naming a file that differs, if damage stops the run
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

  /**
   * Stops the check. @param hangs whether a read may never finish; if so, close does not wait for
   * it
   */
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
          // After a damaged file, the next run hashes the later files again.
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
      // The loader reads the same files: its errors say what is wrong with the storage and whether
      // that ends the run.
      this.#ended = true;
      onNotice(`the data's hashes cannot be checked: ${(error as Error).message}`);
    }
  }

  /** Hashes a file; null if the check was closed meanwhile. */
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

  /** Waits while reading is ahead of the background rate. */
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
    // An unreferenced timer does not keep the process alive. Closing aborts the wait.
    const options = { ref: false, signal: this.#stop.signal };
    await sleep(ahead, undefined, options).catch(() => {});
  }

  /** Skips the files that an earlier part of the run has hashed, if they are unchanged. */
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

  /** Remembers the progress, but not after each of many small files. */
  async #remember(atOnce: boolean): Promise<void> {
    const { memory } = this.#options;
    const now = performance.now();
    if (memory === null || (!atOnce && now - this.#rememberedAt < 2000)) return;
    this.#rememberedAt = now;
    const text = JSON.stringify({
      files: this.checked,
      stamp: this.#stamp.copy().digest("hex"),
    } satisfies Remembered);
    // If it cannot be written, the next run only hashes again.
    await replaceFile(memory, `${text}\n`).catch(() => {});
  }
}

/** A stamp that changes when the file is written to. */
async function stampOf({ path, sha256 }: HashedFileEntry): Promise<string> {
  const { size, mtimeMs } = await stat(path).catch((cause: Error) => {
    throw new DataError(`[data] cannot read ${path}: ${cause.message}`, { cause });
  });
  return `${sha256} ${size} ${mtimeMs}\n`;
}
