/** The output folder of a run: proves that it is writable, and locks it against other runs. */
import { randomUUID } from "node:crypto";
import { closeSync, ftruncateSync, lstatSync, openSync, readFileSync, writeSync } from "node:fs";
import { lstat, mkdir, rm, stat } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { UsageError } from "../core/errors.js";
import {
  describeOwner,
  type LockOwner,
  mayBeAlive,
  parseLockOwner,
  thisOwner,
} from "../files/lock-owner.js";
import { makeFolder } from "../files/make-folder.js";
import { kindOf, readSmallFileSync, sizeLimits } from "../files/small-file.js";
import { writeFileDurably } from "./durable.js";
import { io, type NativeFileLock, systemCode } from "./native-io.js";

const lockFile = "run.lock";

/**
 * Makes the folder if it is missing, and proves that files can be made in it: before step 0, and
 * not at the first checkpoint hours later.
 * @throws UsageError naming the obstacle
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
  const probe = join(folder, `.llamaforge-write-probe-${randomUUID()}`);
  try {
    if (!present) await (parents ? makeFolder(folder) : mkdir(folder));
    await writeFileDurably(probe, "probe\n");
    await rm(probe);
    await io.syncDirectory(folder);
    if (!present) await io.syncDirectory(parent);
  } catch (error) {
    await rm(probe, { force: true }).catch(() => {});
    throw refuse((error as Error).message, error);
  }
}

export interface RunLock {
  /** The run that held the lock and died without releasing it, if there was one. */
  takenOverFrom: string | null;
  release(): void;
}

// Held locks are kept here, because the garbage collection of a lock would release it.
const held = new Set<NativeFileLock>();

/**
 * Locks a run's folder for this process; a second run is refused. The lock is the kernel's and ends
 * with the process, however that ends. A stale lock file is therefore simply taken over.
 * @throws UsageError naming the process that holds the lock
 */
export function acquireRunLock(folder: string): RunLock {
  const path = join(folder, lockFile);
  refuseOtherFile(path);
  const previous = readOwner(path);
  const lock = takeLock(folder, path, previous);
  try {
    lock.write(`${JSON.stringify(thisOwner())}\n`);
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
      // The file is emptied and not removed: another process may have it open and be about to lock
      // it.
      lock.write("");
      lock.release();
    },
  };
}

/** Refuses to overwrite a file whose text is no lock of any version, whole or truncated. */
function refuseOtherFile(path: string): void {
  let text = "";
  try {
    // Taking the lock reports links and devices.
    if (!lstatSync(path).isFile()) return;
    text = readFileSync(path, "utf8").replaceAll("\0", "").trim();
  } catch {
    return;
  }
  if (text === "" || text === "null" || /^[{[]/.test(text)) return;
  throw new UsageError(
    `${path} is in the way: a run keeps its lock there, and this file is none; move or rename it`,
  );
}

function takeLock(folder: string, path: string, previous: LockOwner | null): NativeFileLock {
  const inUse = (owner: LockOwner | null, cause: unknown) =>
    new UsageError(
      `${folder} is in use by another run (${describe(owner)}): ` +
        "wait for it, stop it, or choose another output folder",
      { cause },
    );
  const present = lstatSync(path, { throwIfNoEntry: false });
  if (present !== undefined && !present.isFile()) {
    throw new UsageError(
      `${folder} cannot be locked: ${path} is ${kindOf(present)}, not a regular file; remove it`,
    );
  }
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
    // On a file system without locks (Lustre by default) the owner named in the file has to do.
    if (previous !== null && mayBeAlive(previous)) throw inUse(previous, error);
    return ownerFile(path);
  }
}

/**
 * A lock file that only names its owner. It is kept open, because the folder may be moved and its
 * path may then lead to another's file.
 */
function ownerFile(path: string): NativeFileLock {
  const file = openSync(path, "a");
  return {
    write: (text) => {
      ftruncateSync(file);
      writeSync(file, text);
    },
    release: () => closeSync(file),
  };
}

function readOwner(path: string): LockOwner | null {
  try {
    // Empty after a release, or truncated by a crash. flock decides about the lock; the owner is
    // for messages.
    const options = { limit: sizeLimits.lock, mayBeEmpty: true, followLinks: false };
    return parseLockOwner(readSmallFileSync(path, options).toString("utf8"));
  } catch {
    return null;
  }
}

function describe(owner: LockOwner | null): string {
  return owner === null ? "an unknown process" : describeOwner(owner);
}
