import { randomUUID } from "node:crypto";
import { link, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { UsageError } from "../errors.js";
import { describeOwner, mayBeAlive, parseLockOwner, thisOwner } from "../lock-owner.js";

/** Held until `release`; a process that dies leaves a file that the next one takes over. */
export interface Lock {
  release(): Promise<void>;
}

/**
 * Makes this process the only one to work on something, by a file that names it. Unlike a run's lock it is not the
 * kernel's, which only the addon can take: preparing data needs no addon.
 * @param what for the message: what is being worked on
 * @throws UsageError if a living process holds it
 */
export async function acquireLock(path: string, what: string): Promise<Lock> {
  // Written elsewhere and linked to its name, the lock file appears whole: nobody reads half an owner.
  const content = `${JSON.stringify(thisOwner())}\n`;
  const draft = `${path}.${randomUUID()}`;
  try {
    await writeFile(draft, content, { flag: "wx" });
    while (!(await linkNew(draft, path))) await removeStale(path, what);
  } catch (cause) {
    if (cause instanceof UsageError) throw cause;
    throw new UsageError(`cannot lock ${what}: ${(cause as Error).message}`, { cause });
  } finally {
    await rm(draft, { force: true });
  }
  await removeDrafts(path);
  return { release: () => rm(path, { force: true }) };
}

/** Removes what processes left that were killed while they tried to lock. */
async function removeDrafts(path: string): Promise<void> {
  const drafts = (await readdir(dirname(path))).filter((name) =>
    name.startsWith(`${basename(path)}.`),
  );
  for (const name of drafts) {
    const draft = join(dirname(path), name);
    const content = await readFile(draft, "utf8").catch(() => null);
    const owner = content === null ? null : parseLockOwner(content);
    if (owner !== null && !mayBeAlive(owner)) await rm(draft, { force: true });
  }
}

async function linkNew(from: string, to: string): Promise<boolean> {
  try {
    await link(from, to);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  }
}

/** Removes the lock of a dead process, or throws. */
async function removeStale(path: string, what: string): Promise<void> {
  const content = await readFile(path, "utf8").catch(() => null);
  if (content === null) return;
  const owner = parseLockOwner(content);
  if (owner === null || mayBeAlive(owner)) {
    const who = owner === null ? "another program" : describeOwner(owner);
    throw new UsageError(`${what} is in use by ${who} (${path}); wait for it, or remove the file`);
  }
  // Two that find the same stale lock: only one can move it away, and what was moved must still be the stale one.
  const moved = `${path}.${randomUUID()}`;
  try {
    await rename(path, moved);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return;
    throw error;
  }
  if ((await readFile(moved, "utf8")) !== content) await linkNew(moved, path);
  await rm(moved, { force: true });
}
