import { randomUUID } from "node:crypto";
import { link, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { basename, dirname, join } from "node:path";
import { UsageError } from "../errors.js";

/** Who holds a lock: a process that cannot be mistaken for another one with its number. */
interface Owner {
  pid: number;
  /** Kernel's time of its start, in clock ticks: process numbers are used again. */
  started: string | null;
  host: string;
  boot: string | null;
}

/** Held until `release`; a process that dies leaves a file that the next one takes over. */
export interface Lock {
  release(): Promise<void>;
}

/**
 * Makes this process the only one to work on something, by a file that names it.
 * @param what for the message: what is being worked on
 * @throws UsageError if a living process holds it
 */
export async function acquireLock(path: string, what: string): Promise<Lock> {
  const self: Owner = {
    pid: process.pid,
    started: await startOf(process.pid),
    host: hostname(),
    boot: await readFile("/proc/sys/kernel/random/boot_id", "utf8").then(
      (text) => text.trim(),
      () => null,
    ),
  };
  // Written elsewhere and linked to its name, the lock file appears whole: nobody reads half an owner.
  const content = `${JSON.stringify(self)}\n`;
  const draft = `${path}.${randomUUID()}`;
  try {
    await writeFile(draft, content, { flag: "wx" });
    while (!(await linkNew(draft, path))) await removeStale(path, self, what);
  } catch (cause) {
    if (cause instanceof UsageError) throw cause;
    throw new UsageError(`cannot lock ${what}: ${(cause as Error).message}`, { cause });
  } finally {
    await rm(draft, { force: true });
  }
  await removeDrafts(path, self);
  return { release: () => rm(path, { force: true }) };
}

/** Removes what processes left that were killed while they tried to lock. */
async function removeDrafts(path: string, self: Owner): Promise<void> {
  const drafts = (await readdir(dirname(path))).filter((name) =>
    name.startsWith(`${basename(path)}.`),
  );
  for (const name of drafts) {
    const draft = join(dirname(path), name);
    const content = await readFile(draft, "utf8").catch(() => null);
    const owner = content === null ? null : parseOwner(content);
    if (owner !== null && !(await isAlive(owner, self))) await rm(draft, { force: true });
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
async function removeStale(path: string, self: Owner, what: string): Promise<void> {
  const content = await readFile(path, "utf8").catch(() => null);
  if (content === null) return;
  const owner = parseOwner(content);
  if (owner === null || (await isAlive(owner, self))) {
    const who = owner === null ? "another program" : `process ${owner.pid} on ${owner.host}`;
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

function parseOwner(content: string): Owner | null {
  try {
    const owner: unknown = JSON.parse(content);
    return typeof owner === "object" && owner !== null && "pid" in owner ? (owner as Owner) : null;
  } catch {
    return null;
  }
}

async function isAlive(owner: Owner, self: Owner): Promise<boolean> {
  if (owner.host !== self.host) return true; // cannot be asked from here
  if (owner.boot !== self.boot) return false;
  try {
    process.kill(owner.pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
  return owner.started === (await startOf(owner.pid));
}

/** Field 22 of /proc/PID/stat, behind the name, which may hold spaces and brackets; null on other systems. */
async function startOf(pid: number): Promise<string | null> {
  const text = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => null);
  if (text === null) return null;
  return text.slice(text.lastIndexOf(")") + 2).split(" ")[19] ?? null;
}
