/**
 * Loading: finds the newest valid checkpoint by number, and compares its tensors with the expected
 * ones.
 */

import { join } from "node:path";
import { boundedList } from "../core/bounded-list.js";
import { checkBoolean, checkFunction, checkOptions, checkPath } from "../core/check-values.js";
import { CheckpointError, StorageError } from "../core/errors.js";
import { readJson, readSmallFile } from "./durable.js";
import { type CheckpointPlace, listCheckpoints } from "./folder.js";
import { type Manifest, manifestFile, verifyCheckpoint } from "./manifest.js";
import { type FileDtype, guarded } from "./native-io.js";
import { readSafetensors, type StoredTensors } from "./safetensors.js";
import { trainerFile } from "./save.js";
import { readWeights, weightsFile, weightsIndexFile } from "./weights.js";

const trainerBytesLimit = 64 * 1024 * 1024;
const fileBytesLimit = 256 * 1024 * 1024;

/** A checked checkpoint: every file exists and every header parses. No tensor has been read yet. */
export interface Checkpoint {
  step: number;
  path: string;
  manifest: Manifest;
  /** The value that was saved as `trainer`. */
  trainer: unknown;
  /** Tensors by file name. The shards of the weights appear together as `model.safetensors`. */
  tensors: Map<string, StoredTensors>;
  /** Reads a small file of the checkpoint, such as config.json. */
  readFile(name: string): Promise<Uint8Array>;
}

/** How much of a checkpoint is checked when it opens. */
export interface OpenOptions {
  /**
   * Compare the hash of every file, so that a flipped bit is found before training continues on it.
   * Default: true.
   */
  hashes?: boolean;
}

/**
 * Opens a checkpoint folder.
 * @throws CheckpointError naming every file that is missing, damaged or does not belong there
 */
export async function openCheckpoint(path: string, options: OpenOptions = {}): Promise<Checkpoint> {
  checkOptions("openCheckpoint", options, ["hashes"]);
  const { hashes = true } = options;
  const manifest = await verifyCheckpoint(path, { hashes });
  const tensors = new Map<string, StoredTensors>();
  if (manifest.files.has(weightsFile) || manifest.files.has(weightsIndexFile)) {
    tensors.set(weightsFile, await readWeights(path));
  }
  for (const name of manifest.files.keys()) {
    if (!name.endsWith(".safetensors") || isWeights(name)) continue;
    tensors.set(name, await readSafetensors(join(path, name)));
  }
  if (!manifest.files.has(trainerFile)) {
    throw new CheckpointError(`${path}: ${manifestFile} does not list ${trainerFile}`);
  }
  const trainer = await readJson(join(path, trainerFile), trainerBytesLimit);
  const readFile = async (name: string) => {
    if (!manifest.files.has(name)) throw new CheckpointError(`${path} has no file ${name}`);
    return await guarded(`reading ${name}`, () => readSmallFile(join(path, name), fileBytesLimit));
  };
  return { step: manifest.step, path, manifest, trainer, tensors, readFile };
}

function isWeights(name: string): boolean {
  return name === weightsFile || /^model-\d{5}-of-\d{5}\.safetensors$/.test(name);
}

/** How the newest checkpoint of a run is looked for. */
export interface OpenNewestOptions extends OpenOptions {
  /** Called when a damaged checkpoint is passed over; the message says why. */
  onWarning?: (message: string, place: CheckpointPlace) => void;
}

/**
 * Opens the newest valid checkpoint of a run's folder. Damaged ones are passed over with a warning,
 * for the next older one.
 * @returns null if there are no checkpoints at all
 * @throws CheckpointError if there are checkpoints but none is valid: only the user may decide to
 *   start afresh
 */
export async function openNewest(
  folder: string,
  options: OpenNewestOptions = {},
): Promise<Checkpoint | null> {
  checkPath("openNewest", "folder", folder);
  checkOptions("openNewest", options, ["hashes", "onWarning"]);
  const { hashes = true, onWarning } = options;
  checkBoolean("openNewest", "hashes", hashes);
  if (onWarning !== undefined) checkFunction("openNewest", "onWarning", onWarning);
  const places = await listCheckpoints(folder);
  const failures: string[] = [];
  for (const place of places.reverse()) {
    try {
      return await openCheckpoint(place.path, { hashes });
    } catch (error) {
      if (!(error instanceof CheckpointError) || error.cause instanceof StorageError) throw error;
      failures.push(error.message);
      onWarning?.(error.message, place);
    }
  }
  if (failures.length === 0) return null;
  throw new CheckpointError(
    `none of the ${failures.length} checkpoints in ${folder} is valid:\n${boundedList(failures)}`,
  );
}

/** A tensor that a model or an optimizer needs. */
export interface ExpectedTensor {
  name: string;
  shape: readonly number[];
  /** The accepted dtypes. */
  dtypes: readonly FileDtype[];
}

/**
 * Compares the tensors of a file with the expected ones, before any is read.
 * @throws CheckpointError listing missing, extra, wrongly shaped and wrongly typed tensors
 */
export function matchTensors(
  source: string,
  { tensors }: Pick<StoredTensors, "tensors">,
  expected: readonly ExpectedTensor[],
): void {
  const missing: string[] = [];
  const shapes: string[] = [];
  const dtypes: string[] = [];
  for (const { name, shape, dtypes: allowed } of expected) {
    const stored = tensors.get(name);
    if (stored === undefined) {
      missing.push(name);
      continue;
    }
    if (stored.shape.join() !== shape.join()) {
      shapes.push(`${name}: expected [${shape.join(",")}], got [${stored.shape.join(",")}]`);
    }
    if (!allowed.includes(stored.dtype)) {
      dtypes.push(`${name}: expected ${allowed.join(" or ")}, got ${stored.dtype}`);
    }
  }
  const names = new Set(expected.map(({ name }) => name));
  const extra = [...tensors.keys()].filter((name) => !names.has(name));
  const lists = [
    ["missing", missing],
    ["unexpected", extra],
    ["of the wrong shape", shapes],
    ["of the wrong dtype", dtypes],
  ] as const;
  const report = lists
    .filter(([, list]) => list.length > 0)
    .map(
      ([what, list]) =>
        `${list.length} tensors ${what}:\n${boundedList(list.map((line) => `  ${line}`))}`,
    );
  if (report.length > 0) {
    throw new CheckpointError(`${source} does not fit:\n${report.join("\n")}`);
  }
}
