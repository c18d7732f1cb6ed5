/** Who holds a lock file: a process that cannot be mistaken for another one with its number. */
import { readFileSync } from "node:fs";
import { hostname } from "node:os";

/** A pid alone is not a process: it comes again after a restart, and in time without. */
export interface LockOwner {
  pid: number;
  host: string;
  /** Null on systems that have no such thing; so is `startTime`. */
  bootId: string | null;
  /** Ticks from boot to the start of the process. */
  startTime: string | null;
  since: string;
}

/** This process. */
export function thisOwner(): LockOwner {
  return {
    pid: process.pid,
    host: hostname(),
    bootId: contentOf("/proc/sys/kernel/random/boot_id")?.trim() ?? null,
    startTime: startTime(process.pid),
    since: new Date().toISOString(),
  };
}

/** The owner that a lock file names; null if its content is none. */
export function parseLockOwner(content: string): LockOwner | null {
  try {
    const owner = JSON.parse(content) as Partial<Record<keyof LockOwner, unknown>> | null;
    const isText = (value: unknown) => typeof value === "string";
    const named =
      typeof owner?.pid === "number" &&
      isText(owner.host) &&
      isText(owner.since) &&
      // Another program's file may name its process too: only one with all of our fields is ours.
      [owner.bootId, owner.startTime].every((value) => value === null || isText(value));
    return named ? (owner as LockOwner) : null;
  } catch {
    return null;
  }
}

/** Whether the process of a lock may still run; of another machine nothing is known. */
export function mayBeAlive(owner: LockOwner): boolean {
  const mine = thisOwner();
  if (owner.host !== mine.host) return true;
  if (differ(owner.bootId, mine.bootId)) return false;
  try {
    process.kill(owner.pid, 0);
  } catch (error) {
    // Another user's process is one.
    if ((error as NodeJS.ErrnoException).code !== "EPERM") return false;
  }
  return !differ(owner.startTime, startTime(owner.pid));
}

/** Whether both are known and not the same: a process without /proc knows neither its own nor another's. */
function differ(a: string | null | undefined, b: string | null): boolean {
  return typeof a === "string" && b !== null && a !== b;
}

export function describeOwner(owner: LockOwner): string {
  return `process ${owner.pid} on ${owner.host} since ${owner.since}`;
}

/** Field 22 of /proc/PID/stat; the command before it may hold spaces and parentheses. */
function startTime(pid: number): string | null {
  const text = contentOf(`/proc/${pid}/stat`);
  if (text === null) return null;
  return text.slice(text.lastIndexOf(")") + 2).split(" ")[19] ?? null;
}

function contentOf(path: string): string | null {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return null;
  }
}
