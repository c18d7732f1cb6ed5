import { randomUUID } from "node:crypto";
import { link, readdir, rm, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { UsageError } from "../core/errors.js";
import { describeOwner, mayBeAlive, parseLockOwner, thisOwner } from "./lock-owner.js";
import { readSmallFile, sizeLimits } from "./small-file.js";

/**
 * A lock that is held until `release`. If its process dies, the next process takes the file over.
 */
export interface Lock {
  release(): Promise<void>;
}

/**
 * Makes this process the only one to work on something, with a lock file that names the process. A
 * run's lock is the kernel's, but only the addon can take that one, and preparing data needs no
 * addon.
 * @param what description of the work, for the error message
 * @throws UsageError if a living process holds the lock
 */
export async function acquireLock(path: string, what: string): Promise<Lock> {
  // A draft linked to the final name makes the lock file appear whole: nobody reads half an owner.
  const content = `${JSON.stringify(thisOwner())}\n`;
  const draft = `${path}.${randomUUID()}`;
  try {
    for (;;) {
      await writeFile(draft, content);
      const outcome = await linkNew(draft, path);
      if (outcome === "linked") break;
      if (outcome === "taken") await removeStale(path, what);
    }
  } catch (cause) {
    if (cause instanceof UsageError) throw cause;
    throw new UsageError(`cannot lock ${what}: ${(cause as Error).message}`, { cause });
  } finally {
    await rm(draft, { force: true });
  }
  await removeLeftovers(path);
  return { release: () => release(path, content) };
}

/**
 * Releases a lock. If somebody removed the file and another process has locked since, its lock
 * stays.
 */
async function release(path: string, content: string): Promise<void> {
  const present = await readSmallFile(path, { limit: sizeLimits.lock }).catch(() => null);
  if (present?.toString("utf8") === content) await rm(path, { force: true });
}

/**
 * Removes the drafts of processes that were killed while they took the lock. An empty or
 * half-written draft belongs to a killed process or to one that is writing it right now; the latter
 * finds its draft gone and writes it again.
 */
async function removeLeftovers(path: string): Promise<void> {
  const names = await readdir(dirname(path));
  if (names.includes(basename(takingPath(path)))) {
    // Taking the removal lock shows whether it is a dead process's and nobody else is removing it.
    const taking = await acquireLock(takingPath(path), path).catch(() => null);
    await taking?.release();
  }
  const isDraft = (name: string) =>
    name.startsWith(`${basename(path)}.`) && uuid.test(name.slice(-36));
  for (const name of names.filter(isDraft)) {
    const draft = join(dirname(path), name);
    const content = await contentOf(draft).catch(() => null);
    if (content === null) continue;
    const owner = parseLockOwner(content);
    const isHalf = owner === null && (content === "" || '{"pid":'.startsWith(content.slice(0, 7)));
    const dead = owner === null ? isHalf : !mayBeAlive(owner);
    if (dead) await rm(draft, { force: true });
  }
}

const uuid = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/**
 * Gives a file a second name. The outcome is "linked", "taken" if that name exists, or "gone" if
 * the file does not.
 */
async function linkNew(from: string, to: string): Promise<"linked" | "taken" | "gone"> {
  try {
    await link(from, to);
    return "linked";
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "EEXIST") return "taken";
    if (code === "ENOENT") return "gone";
    throw error;
  }
}

/**
 * Removes the lock of a dead process, or throws if its owner may be alive. A lock is removed only
 * under a second lock: two processes may see the same dead owner, and the slower one would
 * otherwise remove the lock of a third process that came in between.
 */
async function removeStale(path: string, what: string): Promise<void> {
  if (!(await isStale(path, what))) return;
  const taking = await acquireLock(takingPath(path), what);
  try {
    if (await isStale(path, what)) await rm(path, { force: true });
  } finally {
    await taking.release();
  }
}

/**
 * Whether the lock file was left by a dead process; false if there is no lock file.
 * @throws UsageError if its owner may be alive
 */
async function isStale(path: string, what: string): Promise<boolean> {
  const content = await contentOf(path).catch((cause: Error) => {
    throw new UsageError(`cannot lock ${what}: ${path}: ${cause.message}; remove it`, { cause });
  });
  if (content === null) return false;
  const owner = parseLockOwner(content);
  if (owner !== null && !mayBeAlive(owner)) return true;
  const who = owner === null ? "another program" : describeOwner(owner);
  throw new UsageError(`${what} is in use by ${who} (${path}); wait for it, or remove the file`);
}

/** The content of a lock file; null if there is none. */
async function contentOf(path: string): Promise<string | null> {
  try {
    const bytes = await readSmallFile(path, { limit: sizeLimits.lock, mayBeEmpty: true });
    return bytes.toString("utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw error;
  }
}

/** Path of the lock that a process holds while it removes a dead process's lock. */
function takingPath(path: string): string {
  return `${path}.taking`;
}
