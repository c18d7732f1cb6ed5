/**
 * Saving. A checkpoint appears whole or not at all, whenever the machine stops:
 *
 *   step-N.tmp/checkpoint/          write and fsync each file
 *   step-N.tmp/checkpoint/manifest  last, with the hashes of the others; fsync it, fsync the folder
 *   rename to step-N/               fsync the parent
 *
 * step-N.tmp carries the mark of own-folder.ts, so it may be removed at any moment.
 *
 * Hashing and writing run on the thread pool; the event loop only hands over pieces.
 */
import { lstat, mkdir } from "node:fs/promises";
import { join } from "node:path";
import { performance } from "node:perf_hooks";
import { CheckpointError } from "../core/errors.js";
import type { FolderIdentity } from "../files/folder-identity.js";
import { makeOwnFolder, removeOwnFolder } from "../files/own-folder.js";
import { checkPlainFileName, toJson, writeFileDurably } from "./durable.js";
import { checkpointName, discard, holdsCheckpoint } from "./folder.js";
import { formatManifest, manifestFile } from "./manifest.js";
import { expectUnmoved, MovedFolderError } from "./moved.js";
import { checkpointError, type Digest, io, systemCode } from "./native-io.js";
import { applyRetention, checkRetention, type Retention } from "./retention.js";
import { type TensorSource, tensorBytes, writeSafetensors } from "./safetensors.js";
import { expectSpaceToSave } from "./space.js";
import { weightsFile, writeWeights } from "./weights.js";

export const trainerFile = "trainer.json";

/** The content of a checkpoint as plain data, independent of models and optimizers. */
export interface CheckpointContents {
  /** Small files by name: config.json, tokenizer.json, ... */
  files: Readonly<Record<string, string | Uint8Array>>;
  /** Tensors by file name. `model.safetensors` is split into shards when it is large. */
  tensors: Readonly<Record<string, readonly TensorSource[]>>;
  /** Step, sampler position, RNG counters, guard window and so on: becomes trainer.json. */
  trainer: unknown;
  /** Hashes of config, data and tokenizer, world size, build id: stored in the manifest. */
  run: Readonly<Record<string, unknown>>;
  shardBytes?: number;
}

export interface SavedCheckpoint {
  step: number;
  path: string;
  bytes: number;
  seconds: number;
}

/**
 * Writes the checkpoint of a step into the run's folder, replacing one of the same step.
 * @param identity identity of the folder, whose `root` is then `folder`: after a move the save
 *   fails
 * @throws CheckpointError naming the system's code (ENOSPC, ...). The failed save is removed, and
 *   earlier checkpoints are untouched.
 * @throws MovedFolderError if the folder was moved
 */
export async function saveCheckpoint(
  folder: string,
  step: number,
  contents: CheckpointContents,
  identity: FolderIdentity | null = null,
): Promise<SavedCheckpoint> {
  const started = performance.now();
  const name = checkpointName(step);
  const path = join(folder, name);
  const temporary = `${path}.tmp`;
  const written = join(temporary, "checkpoint");
  checkFileNames(contents);
  try {
    await expectUnmoved(identity);
    await removeOwnFolder(temporary, "[checkpoint]");
    await expectSpaceToSave(folder, contentBytes(contents));
    await makeOwnFolder(temporary, "[checkpoint]");
    await mkdir(written);
    const files = await writeContents(written, contents);
    const manifest = formatManifest({ step, run: { ...contents.run }, files });
    await writeFileDurably(join(written, manifestFile), manifest);
    await io.syncDirectory(written);
    await expectUnmoved(identity);
    await publish(folder, name, written);
    await removeOwnFolder(temporary, "[checkpoint]");
    const bytes = [...files.values()].reduce((sum, digest) => sum + digest.bytes, manifest.length);
    return { step, path, bytes, seconds: (performance.now() - started) / 1000 };
  } catch (error) {
    // Without a path to the open folder itself, the path may lead to a stranger's folder, and the
    // error may be an ENOENT from there.
    if (identity && identity.root === identity.path) await expectUnmoved(identity);
    // The first error is the one that matters, and a remaining .tmp is never taken for a
    // checkpoint.
    await removeOwnFolder(temporary, "[checkpoint]").catch(() => {});
    throw checkpointError(`saving ${path}`, error);
  }
}

/** Lower bound of the files' bytes: headers are small compared with the tensors. */
function contentBytes({ files, tensors }: CheckpointContents): number {
  const small = Object.values(files).reduce((sum, content) => sum + content.length, 0);
  return Object.values(tensors)
    .flat()
    .reduce((sum, tensor) => sum + tensorBytes(tensor), small);
}

function checkFileNames({ files, tensors }: CheckpointContents): void {
  const names = [...Object.keys(files), ...Object.keys(tensors), trainerFile, manifestFile];
  for (const name of names) checkPlainFileName("checkpoint", name);
  for (const name of Object.keys(tensors)) {
    if (!name.endsWith(".safetensors")) {
      throw new CheckpointError(`checkpoint: tensors go into .safetensors files, not ${name}`);
    }
  }
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice !== undefined) throw new CheckpointError(`checkpoint: two files called ${twice}`);
}

async function writeContents(
  folder: string,
  { files, tensors, trainer, shardBytes }: CheckpointContents,
): Promise<Map<string, Digest>> {
  const digests = new Map<string, Digest>();
  for (const [name, content] of Object.entries(files)) {
    digests.set(name, await writeFileDurably(join(folder, name), content));
  }
  for (const [name, list] of Object.entries(tensors)) {
    if (name === weightsFile) {
      const options = shardBytes === undefined ? {} : { shardBytes };
      for (const [shard, digest] of await writeWeights(folder, list, options)) {
        digests.set(shard, digest);
      }
    } else {
      digests.set(name, await writeSafetensors(join(folder, name), list));
    }
  }
  const text = toJson(trainerFile, trainer);
  digests.set(trainerFile, await writeFileDurably(join(folder, trainerFile), text));
  return digests;
}

async function publish(folder: string, name: string, written: string): Promise<void> {
  const path = join(folder, name);
  const replaces = await lstat(path).then(
    () => true,
    () => false,
  );
  if (!replaces) {
    await io.renamePath(written, path);
    await io.syncDirectory(folder);
    return;
  }
  if (!(await holdsCheckpoint(path))) {
    throw new CheckpointError(
      `${path} is in the way: it is no checkpoint, so none takes its place; move or rename it`,
    );
  }
  try {
    // A run that fell back repeats a step saved before. The exchange leaves one of the two in place
    // at any moment.
    await io.exchangePaths(written, path);
    await io.syncDirectory(folder);
  } catch (error) {
    if (!["EINVAL", "ENOSYS", "ENOTSUP"].includes(systemCode(error) ?? "")) throw error;
    // Without an exchange of names, only the earlier checkpoints exist for a moment.
    await discard(folder, name);
    await io.renamePath(written, path);
    await io.syncDirectory(folder);
  }
}

export interface CheckpointWriterOptions {
  /**
   * Identity of the run's folder. If another folder takes its place, this save and all later ones
   * fail.
   */
  identity?: FolderIdentity | null;
  retention?: Retention;
  onSaved?: (saved: SavedCheckpoint) => void;
  /** Called when a save failed and training continues; the error says why. */
  onFailed?: (error: Error, step: number) => void;
  /**
   * Called about a problem that puts no data at risk, such as an old checkpoint that cannot be
   * deleted.
   */
  onWarning?: (message: string) => void;
  /** Number of failures in a row that ends the run. Default: 3. */
  failureLimit?: number;
}

/**
 * Saves in the background, one checkpoint at a time. If a save takes longer than the interval, the
 * next one waits in `ready()` before its snapshot is taken, so there is never more than one
 * snapshot in memory.
 *
 *     await writer.ready();
 *     const contents = snapshot();       // copies to host memory
 *     writer.start(step, contents);      // training goes on
 */
export class CheckpointWriter {
  readonly #folder: string;
  readonly #options: CheckpointWriterOptions;
  #running: Promise<void> | null = null;
  #failure: Error | null = null;
  #failures = 0;

  constructor(folder: string, options: CheckpointWriterOptions = {}) {
    if (options.retention) checkRetention(options.retention);
    this.#folder = folder;
    this.#options = options;
  }

  /** The reason to end the run, once a save has found that the folder was moved. */
  get moved(): MovedFolderError | null {
    return this.#failure instanceof MovedFolderError ? this.#failure : null;
  }

  /** Whether a save is in progress, so that `ready()` would wait. */
  get busy(): boolean {
    return this.#running !== null;
  }

  /**
   * Waits for the previous save.
   * @throws CheckpointError if the last `failureLimit` saves all failed
   * @throws MovedFolderError at once if the folder was moved, because it does not come back by
   *   itself
   */
  async ready(): Promise<void> {
    while (this.#running !== null) await this.#running;
    if (this.moved !== null) throw this.moved;
    const limit = this.#options.failureLimit ?? 3;
    if (this.#failure !== null && this.#failures >= limit) {
      throw new CheckpointError(
        `${this.#failures} saves in a row failed, the last one: ${this.#failure.message}`,
        { cause: this.#failure },
      );
    }
  }

  /** Starts a save. Its outcome is reported to `onSaved` or `onFailed`, and by `finish()`. */
  start(step: number, contents: CheckpointContents): void {
    if (this.#running !== null) {
      throw new CheckpointError("a save is still running: await ready() before the next snapshot");
    }
    this.#running = this.#save(step, contents).finally(() => {
      this.#running = null;
    });
  }

  /** Waits for the running save. @throws CheckpointError if the last save failed */
  async finish(): Promise<void> {
    while (this.#running !== null) await this.#running;
    if (this.#failure !== null) throw this.#failure;
  }

  async #save(step: number, contents: CheckpointContents): Promise<void> {
    const { identity = null, retention } = this.#options;
    // If the folder is moved during the save, the whole checkpoint still lands in it.
    const folder = identity?.root ?? this.#folder;
    const named = (text: string): string => identity?.named(text) ?? text;
    try {
      const saved = await saveCheckpoint(folder, step, contents, identity);
      this.#failure = null;
      this.#failures = 0;
      this.#options.onSaved?.({ ...saved, path: named(saved.path) });
    } catch (error) {
      (error as Error).message = named((error as Error).message);
      this.#failure = error as Error;
      this.#failures += 1;
      if (this.moved === null) this.#options.onFailed?.(error as Error, step);
      return;
    }
    if (!retention) return;
    try {
      await applyRetention(folder, retention, identity);
    } catch (error) {
      if (error instanceof MovedFolderError) this.#failure = error;
      else
        this.#options.onWarning?.(`old checkpoints were kept: ${named((error as Error).message)}`);
    }
  }
}
