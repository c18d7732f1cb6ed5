import { randomUUID } from "node:crypto";
import { link, readdir, rm, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { UsageError } from "../core/errors.js";
import { describeOwner, mayBeAlive, parseLockOwner, thisOwner } from "../files/lock-owner.js";
import { readSmallFile, sizeLimits } from "../files/small-file.js";

/** Held until `release`; a process that dies leaves a file that the next one takes over. */
export interface Lock {
  release(): Promise<void>;
}

/**
 * Makes this process the only one to work on something, by a file that names it. Unlike a run's
 * lock it is not the kernel's, which only the addon can take: preparing data needs no addon.
 * @param what for the message: what is being worked on
 * @throws UsageError if a living process holds it
 */
export async function acquireLock(path: string, what: string): Promise<Lock> {
  // Written elsewhere and linked to its name, the lock file appears whole: nobody reads half an owner.
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

/** Gives a lock back, unless somebody has removed the file and it is another one's by now. */
async function release(path: string, content: string): Promise<void> {
  const present = await readSmallFile(path, { limit: sizeLimits.lock }).catch(() => null);
  if (present?.toString("utf8") === content) await rm(path, { force: true });
}

/**
 * Removes what processes left that were killed while they took the lock. An empty or half draft is
 * one that its process was killed over, or is writing at this moment: that one finds it gone and
 * writes it again.
 */
async function removeLeftovers(path: string): Promise<void> {
  const names = await readdir(dirname(path));
  if (names.includes(basename(takingPath(path)))) {
    // Whether it is a dead one's, and nobody else is at it, is told by taking it.
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

/** Gives a file a second name: done, or that name is taken, or the file is no more. */
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
 * Removes the lock of a dead process, or throws if its owner may live. Only who holds the right to
 * remove it may: otherwise a second one that saw the same dead owner would remove the lock of who
 * came after.
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
 * Whether a dead process left the lock; false if there is none.
 * @throws UsageError if its owner may live
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

/** The lock of who removes a dead process's lock. */
function takingPath(path: string): string {
  return `${path}.taking`;
}
