/** The output folder of a run: that it can be written to, and that nobody else does. */
import { readFileSync, writeFileSync } from "node:fs";
import { lstat, mkdir, rm, stat } from "node:fs/promises";
import { hostname } from "node:os";
import { dirname, join, resolve } from "node:path";
import { UsageError } from "../errors.js";
import { isRecord, writeFileDurably } from "./durable.js";
import { io, type NativeFileLock, systemCode } from "./native-io.js";

const lockFile = "run.lock";

/**
 * Makes the folder if it is missing and proves that files can be made in it: before step 0, not at the
 * first checkpoint hours later.
 * @throws UsageError saying what is in the way
 */
export async function prepareOutputFolder(
  folder: string,
  { parents = false }: { parents?: boolean } = {},
): Promise<void> {
  const refuse = (why: string, cause?: unknown) =>
    new UsageError(`the output folder ${folder} cannot be used: ${why}`, { cause });
  const present = await lstat(folder).catch((error: unknown) => {
    if (systemCode(error) === "ENOENT") return null;
    throw refuse((error as Error).message, error);
  });
  if (present?.isSymbolicLink()) {
    throw refuse("it is a symbolic link, and what it points to may change; name the folder itself");
  }
  if (present && !present.isDirectory()) throw refuse("it is a file");
  const parent = dirname(resolve(folder));
  if (!present && !parents && !(await stat(parent).catch(() => null))?.isDirectory()) {
    throw refuse(`its parent ${parent} is not an existing folder; create it first`);
  }
  const probe = join(folder, `.write-probe-${process.pid}`);
  try {
    if (!present) await mkdir(folder, { recursive: parents });
    await rm(probe, { force: true });
    await writeFileDurably(probe, "probe\n");
    await rm(probe);
    await io.syncDirectory(folder);
    if (!present) await io.syncDirectory(parent);
  } catch (error) {
    await rm(probe, { force: true }).catch(() => {});
    throw refuse((error as Error).message, error);
  }
}

/** Who holds a lock. A pid alone is not a process: it comes again after a restart, and in time without. */
interface Owner {
  pid: number;
  host: string;
  bootId: string;
  /** Ticks from boot to the start of the process. */
  startTime: string;
  since: string;
}

export interface RunLock {
  /** The run that held the lock and died without giving it back, if there was one. */
  takenOverFrom: string | null;
  release(): void;
}

// A lock whose last reference is collected would be open to others, so these are kept here.
const held = new Set<NativeFileLock>();

/**
 * Locks a run's folder for this process; a second run is refused. The lock is the kernel's and ends with
 * the process however it ends, so a stale one is simply taken over.
 * @throws UsageError naming the process that holds it
 */
export function acquireRunLock(folder: string): RunLock {
  const path = join(folder, lockFile);
  const previous = readOwner(path);
  const lock = takeLock(folder, path, previous);
  try {
    lock.write(`${JSON.stringify(self())}\n`);
  } catch (error) {
    lock.release();
    throw new UsageError(`${folder} cannot be locked: ${(error as Error).message}`, {
      cause: error,
    });
  }
  held.add(lock);
  return {
    takenOverFrom: previous === null ? null : describe(previous),
    release: () => {
      if (!held.delete(lock)) return;
      // Emptied, not removed: another process may have this very file open and be about to lock it.
      lock.write("");
      lock.release();
    },
  };
}

function takeLock(folder: string, path: string, previous: Owner | null): NativeFileLock {
  const inUse = (owner: Owner | null, cause: unknown) =>
    new UsageError(
      `${folder} is in use by another run (${describe(owner)}): ` +
        "wait for it, stop it, or choose another output folder",
      { cause },
    );
  try {
    return new io.FileLock(path);
  } catch (error) {
    const code = systemCode(error) ?? "";
    if (code === "EAGAIN") throw inUse(readOwner(path), error);
    if (!["ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOLCK"].includes(code)) {
      throw new UsageError(`${folder} cannot be locked: ${(error as Error).message}`, {
        cause: error,
      });
    }
    // A file system without locks (Lustre by default): what the file says must do.
    if (previous !== null && mayBeAlive(previous)) throw inUse(previous, error);
    return { write: (text) => writeFileSync(path, text), release: () => {} };
  }
}

/** Whether the process of a lock may still run; of another machine nothing is known. */
function mayBeAlive(owner: Owner): boolean {
  const mine = self();
  if (owner.host !== mine.host) return true;
  if (owner.bootId !== mine.bootId) return false;
  try {
    return startTime(`${owner.pid}`) === owner.startTime;
  } catch {
    return false;
  }
}

function self(): Owner {
  return {
    pid: process.pid,
    host: hostname(),
    bootId: readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim(),
    startTime: startTime("self"),
    since: new Date().toISOString(),
  };
}

/** Field 22 of /proc/PID/stat; the command before it may hold spaces and parentheses. */
function startTime(pid: string): string {
  const text = readFileSync(`/proc/${pid}/stat`, "utf8");
  return text.slice(text.lastIndexOf(")") + 2).split(" ")[19] ?? "";
}

function readOwner(path: string): Owner | null {
  try {
    const owner: unknown = JSON.parse(readFileSync(path, "utf8"));
    return isRecord(owner) && typeof owner.pid === "number" ? (owner as unknown as Owner) : null;
  } catch {
    return null; // absent, empty (given back), or cut short by a crash: flock decides, this is for messages
  }
}

function describe(owner: Owner | null): string {
  if (owner === null) return "an unknown process";
  return `process ${owner.pid} on ${owner.host} since ${owner.since}`;
}
