import { access } from "node:fs/promises";
import { join } from "node:path";
import { CheckpointError, NonFiniteError, UsageError } from "../core/errors.js";
import { printError } from "./terminal.js";

/**
 * The given folder if it holds a model; for a run's folder, its newest checkpoint.
 * @throws UsageError if it is neither
 */
export async function modelFolder(folder: string): Promise<string> {
  const isModel = await access(join(folder, "config.json")).then(
    () => true,
    () => false,
  );
  if (isModel) return folder;
  const { openNewest } = await import("../checkpoint/load.js");
  const newest = await openNewest(folder, {
    hashes: false,
    onWarning: (message) => printError(`warning: ${message}\n`),
  });
  if (newest === null) {
    throw new UsageError(
      `${folder}: expected a folder with config.json, or a run with checkpoints in it`,
    );
  }
  return newest.path;
}

/** Reports non-finite weights as a fault of the files that they came from. */
export function ofCheckpoint(error: unknown, place: string): unknown {
  if (!(error instanceof NonFiniteError) || error.tensors.length === 0) return error;
  return new CheckpointError(`${place}: ${error.message}`, { cause: error });
}
