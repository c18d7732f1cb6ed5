/**
 * Chooses the checkpoint to resume from, checks that it is of this run, and makes all ranks take
 * the same one.
 */
import { realpath } from "node:fs/promises";
import { dirname } from "node:path";
import { isDeepStrictEqual } from "node:util";
import { listCheckpoints } from "../checkpoint/folder.js";
import { type Checkpoint, openCheckpoint, openNewest } from "../checkpoint/load.js";
import { checkRun } from "../checkpoint/manifest.js";
import { setAside } from "../checkpoint/set-aside.js";
import type { RunConfig } from "../config/index.js";
import {
  checkChanges,
  compareRecipes,
  describeChanges,
  type Recipe,
  type RecipeChange,
  savedRecipe,
} from "../config/recipe.js";
import { CheckpointError, DataError, LlamaForgeError, UsageError } from "../core/errors.js";
import type { Cluster } from "../dist/cluster.js";
import type { FolderIdentity } from "../files/folder-identity.js";
import { runFiles } from "./metrics.js";
import type { TrainerState } from "./state.js";

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

/** Moves everything that a run saved after the checkpoint to which it goes back out of its way. */
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
 * Refuses a checkpoint of another run.
 * @param state trainer state of the checkpoint, which describes its model
 * @throws CheckpointError if the model or another fact about the run differs
 * @throws DataError if only the data has changed, which the caller may allow
 */
export function checkIdentity(
  { path, manifest }: Checkpoint,
  { data, model, ...identity }: Record<string, unknown>,
  {
    config,
    state,
    allowDataChange = false,
    onNotice,
  }: { config: RunConfig; state: TrainerState; allowDataChange?: boolean; onNotice: Notice },
): void {
  const fields = [
    ["model", model === manifest.run.model ? "" : differences(state.config.model, config.model)],
    ["lora", differences(manifest.run.lora, identity.lora)],
  ].filter(([, found]) => found !== "");
  if (fields.length > 0) {
    const lines = fields.map(([section, found]) => `\n  ${section}: it has ${found}`);
    throw new CheckpointError(`${path} is from a different run:${lines.join("")}`);
  }
  checkRun(path, manifest, { model, ...identity });
  if (manifest.run.data === data) return;
  const weights = differences(savedWeights(state), config.data.train);
  const what =
    weights === ""
      ? `fingerprint ${manifest.run.data}, here ${data}`
      : `data.train: it has ${weights}`;
  const change = `${path} was trained on other data (${what})`;
  if (!allowDataChange) {
    throw new DataError(
      `${change}: shards were changed, removed, reordered or added, or weights are others. Going on would repeat some ` +
        "windows and leave others out; --allow-data-change does it all the same",
    );
  }
  onNotice(`${change}: some windows will be repeated and others left out`);
}

/** The data sets of a checkpoint's recipe, with their weights, if it names them. */
function savedWeights({ config }: TrainerState): unknown {
  return (config.data as { train?: unknown } | undefined)?.train;
}

/**
 * Describes the fields in which two objects differ: `layers 1, not 2, and heads 4, not 8`. Empty if
 * either is no object, so that its fields are not known.
 */
function differences(saved: unknown, now: unknown): string {
  if (typeof saved !== "object" || saved === null) return "";
  if (typeof now !== "object" || now === null) return "";
  const theirs = saved as Record<string, unknown>;
  const mine = now as Record<string, unknown>;
  const inText = (value: unknown) =>
    typeof value === "object" ? JSON.stringify(value) : `${value ?? "none"}`;
  return [...new Set([...Object.keys(mine), ...Object.keys(theirs)])]
    .filter((field) => !isDeepStrictEqual(theirs[field], mine[field]))
    .map((field) => `${field} ${inText(theirs[field])}, not ${inText(mine[field])}`)
    .join(", and ");
}

/**
 * Compares the recipe of a checkpoint with this run's, and describes the changes and their
 * consequences.
 * @param ranks number of ranks that train together now
 * @throws ConfigError if `strict` and anything has changed, or if a change makes resuming
 *   impossible
 */
export function checkRecipe(
  { path, manifest }: Checkpoint,
  state: TrainerState,
  now: Recipe,
  { resumeStrict = false, onNotice }: { resumeStrict?: boolean; onNotice: Notice },
): RecipeChange[] {
  const before = savedRecipe(state.config, manifest.run.worldSize);
  if (before === null) {
    const unknown = `${path}: its recipe is not one that this version reads`;
    if (resumeStrict) throw new CheckpointError(`${unknown}, so --resume-strict refuses it`);
    onNotice(`${unknown}: what has changed since cannot be told`);
    return [];
  }
  const changes = compareRecipes(before, now);
  checkChanges(changes, path, resumeStrict);
  if (changes.length > 0) {
    const lines = describeChanges(changes, before, now, state.step).map((line) => `\n  ${line}`);
    onNotice(`the recipe has changed since step ${state.step} was saved:${lines.join("")}`);
  }
  return changes;
}

/** Rank 0's decision about the checkpoint to resume from. */
interface CheckpointVerdict {
  /** Folder of the checkpoint; empty for none. */
  path: string;
  /** The error, if no checkpoint can be used. */
  refusal: { message: string; code: string; exitCode: number } | null;
}

/**
 * The checkpoint to resume from. Rank 0 finds and verifies it, and the others open the same one. A
 * failure occurs on all of them, with the same message and exit code.
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
