/** Where a run goes on: which checkpoint, whether it is this run's, and that all ranks take the same one. */
import { realpath } from "node:fs/promises";
import { dirname } from "node:path";
import { listCheckpoints } from "../checkpoint/folder.js";
import { type Checkpoint, openCheckpoint, openNewest } from "../checkpoint/load.js";
import { checkRun } from "../checkpoint/manifest.js";
import { setAside } from "../checkpoint/set-aside.js";
import type { Cluster } from "../dist/cluster.js";
import { DataError, LlamaForgeError, UsageError } from "../errors.js";
import type { FolderIdentity } from "../folder-identity.js";
import { runFiles } from "./metrics.js";

type Notice = (message: string) => void;

/** The checkpoint that `resume` asks for (see TrainerOptions); null to start anew. */
export async function findCheckpoint(
  folder: string,
  resume: string,
  onNotice: Notice,
): Promise<Checkpoint | null> {
  if (resume === "auto") return await openNewest(folder, { onWarning: onNotice });
  const checkpoint = resume === "none" ? null : await openCheckpoint(resume);
  const present = await listCheckpoints(folder);
  if (present.length > 0 && !(checkpoint && (await liesIn(checkpoint.path, folder)))) {
    throw new UsageError(
      `${folder} holds ${present.length} checkpoints of an earlier run, which a new run would mix with its own: ` +
        "resume it (--resume auto), choose another `out`, or remove them",
    );
  }
  return checkpoint;
}

async function liesIn(path: string, folder: string): Promise<boolean> {
  return dirname(await realpath(path)) === (await realpath(folder));
}

/** Takes what a run has saved after the checkpoint that it goes back to out of its way. */
export async function goBackTo(
  { step }: Checkpoint,
  folder: FolderIdentity,
  onNotice: Notice,
): Promise<void> {
  const target = await setAside(folder.root, step, Object.values(runFiles), folder);
  if (target === null) return;
  const name = folder.named(target);
  onNotice(`the run goes back to step ${step}: what it had saved after that is in ${name} now`);
}

/**
 * A checkpoint of another run is refused.
 * @throws CheckpointError; DataError if only the data has changed, which the caller may allow
 */
export function checkIdentity(
  { path, manifest }: Checkpoint,
  { data, ...identity }: Record<string, unknown>,
  { allowDataChange = false, onNotice }: { allowDataChange?: boolean; onNotice: Notice },
): void {
  checkRun(path, manifest, identity);
  if (manifest.run.data === data) return;
  const change = `${path} was trained on other data (fingerprint ${manifest.run.data}, here ${data})`;
  if (!allowDataChange) {
    throw new DataError(
      `${change}: shards were changed, removed, reordered or added, or weights are others. Going on would repeat some ` +
        "windows and leave others out; --allow-data-change does it all the same",
    );
  }
  onNotice(`${change}: some windows will be repeated and others left out`);
}

/** What rank 0 says of the checkpoint to go on from. */
interface CheckpointVerdict {
  /** Its folder; empty for none. */
  path: string;
  /** Why there is none that will do. */
  refusal: { message: string; code: string; exitCode: number } | null;
}

/**
 * The checkpoint to go on from: rank 0 finds and verifies it, the others open the same one. Where it fails, it does so on all of
 * them, with the same words and exit code.
 */
export async function agreedCheckpoint(
  cluster: Cluster | null,
  find: () => Promise<Checkpoint | null>,
): Promise<Checkpoint | null> {
  if (cluster === null) return await find();
  let found: Checkpoint | null = null;
  let failure: LlamaForgeError | null = null;
  const said = await cluster.fromFirst("checkpoint", async () => {
    const verdict: CheckpointVerdict = { path: "", refusal: null };
    try {
      found = await find();
      verdict.path = found?.path ?? "";
    } catch (error) {
      if (!(error instanceof LlamaForgeError)) throw error;
      failure = error;
      const { message, code, exitCode } = error;
      verdict.refusal = { message, code, exitCode };
    }
    return JSON.stringify(verdict);
  });
  const { path, refusal } = JSON.parse(said) as CheckpointVerdict;
  if (refusal) {
    await cluster.meet("the checkpoint is refused");
    await cluster.close();
    throw failure ?? new LlamaForgeError(refusal.message, refusal.code, refusal.exitCode);
  }
  const checkpoint = found ?? (path === "" ? null : await openCheckpoint(path, { hashes: false }));
  await cluster.compare("start", {
    "the checkpoint": checkpoint ? JSON.stringify(checkpoint.manifest.run) : "none",
  });
  return checkpoint;
}
