import { join } from "node:path";
import { cleanUp, listCheckpoints } from "../checkpoint/folder.js";
import { acquireRunLock, prepareOutputFolder, type RunLock } from "../checkpoint/lock.js";
import { expectUnmoved } from "../checkpoint/moved.js";
import { checkpointBytes, expectSpaceToRun } from "../checkpoint/space.js";
import type { RunConfig } from "../config/index.js";
import type { RecipeChange } from "../config/recipe.js";
import { FolderIdentity } from "../files/folder-identity.js";
import { loraParameterCount } from "../model/lora-config.js";
import { parameterCount } from "../model/shapes.js";
import { muonParameters } from "../plan/memory.js";
import { MetricsWriter, type RunInfo, recordRun, runFiles } from "./metrics.js";
import { refuseForeignRecords } from "./own-records.js";

/** The run's folder, locked by this process. */
export interface OutputFolder {
  lock: RunLock;
  /** Tells whether the folder's path still leads to this folder. */
  identity: FolderIdentity;
}

/**
 * Locks the run's folder, removes files of a killed save, and checks that the disk has room for the
 * run's checkpoints. While the lock is held, no other process writes there.
 */
export async function takeOutputFolder(config: RunConfig, saves: boolean): Promise<OutputFolder> {
  const { out, checkpoint, model, precision, lora, optimizer } = config;
  await prepareOutputFolder(out, { parents: true });
  const identity = await FolderIdentity.of(out);
  let lock: RunLock | null = null;
  try {
    lock = acquireRunLock(out);
    // The lock belongs to the folder that the path led to when it was taken.
    await expectUnmoved(identity);
    await cleanUp(out);
    await refuseForeignRecords(out);
    const present = (await listCheckpoints(out)).length;
    const trained = lora ? loraParameterCount(lora, model) : parameterCount(model);
    const matrices = optimizer.type === "muon" ? muonParameters(model) : 0;
    const one = checkpointBytes(trained, precision, trained - matrices);
    if (saves) await expectSpaceToRun(out, one, { ...checkpoint, present });
    return { lock, identity };
  } catch (error) {
    lock?.release();
    await identity.close();
    throw error;
  }
}

/**
 * Releases the folder. The lock stays with the folder itself, even if the folder has been moved.
 */
export async function releaseOutputFolder(output: OutputFolder | null): Promise<void> {
  output?.lock.release();
  await output?.identity.close();
}

/**
 * Opens the files that describe the run.
 * @param from the step that the run resumes from, and the changes of its recipe
 */
export async function openRecords(
  folder: FolderIdentity,
  info: Omit<RunInfo, "started" | "changes">,
  from: { step: number; changes: readonly RecipeChange[] },
  onNotice: (message: string) => void,
): Promise<MetricsWriter> {
  const file = join(folder.root, runFiles.metrics);
  const metrics = await MetricsWriter.open(file, from.step, onNotice, folder);
  await expectUnmoved(folder);
  await recordRun(folder.root, info, from).catch((error: Error) =>
    onNotice(`run.json cannot be written: ${folder.named(error.message)}`),
  );
  return metrics;
}
