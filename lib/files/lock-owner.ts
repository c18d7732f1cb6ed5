/**
 * The holder of a lock file, identified beyond its pid, so that no other process is mistaken for
 * it.
 */
import { readFileSync } from "node:fs";
import { hostname } from "node:os";

/**
 * The identity of a process. A pid alone is not enough: pids are reused after a restart, and in
 * time without one.
 */
export interface LockOwner {
  pid: number;
  host: string;
  /** Null on systems without a boot id; `startTime` likewise. */
  bootId: string | null;
  /** Ticks from boot to the start of the process. */
  startTime: string | null;
  since: string;
}

/** The identity of this process. */
export function thisOwner(): LockOwner {
  return {
    pid: process.pid,
    host: hostname(),
    bootId: contentOf("/proc/sys/kernel/random/boot_id")?.trim() ?? null,
    startTime: startTime(process.pid),
    since: new Date().toISOString(),
  };
}

/** Parses the owner in a lock file; null if the content names none. */
export function parseLockOwner(content: string): LockOwner | null {
  try {
    const owner = JSON.parse(content) as Partial<Record<keyof LockOwner, unknown>> | null;
    const isText = (value: unknown) => typeof value === "string";
    const named =
      typeof owner?.pid === "number" &&
      isText(owner.host) &&
      isText(owner.since) &&
      // Another program's file may name its process too. Only a file with all of these fields is a
      // lock.
      [owner.bootId, owner.startTime].every((value) => value === null || isText(value));
    return named ? (owner as LockOwner) : null;
  } catch {
    return null;
  }
}

/** Whether the process of a lock may still run. A process on another machine always may. */
export function mayBeAlive(owner: LockOwner): boolean {
  const mine = thisOwner();
  if (owner.host !== mine.host) return true;
  if (differ(owner.bootId, mine.bootId)) return false;
  try {
    process.kill(owner.pid, 0);
  } catch (error) {
    // EPERM means that the process exists and belongs to another user.
    if ((error as NodeJS.ErrnoException).code !== "EPERM") return false;
  }
  return !differ(owner.startTime, startTime(owner.pid));
}

/**
 * Whether both values are known and differ. A process without /proc knows neither its own nor
 * another's.
 */
function differ(a: string | null | undefined, b: string | null): boolean {
  return typeof a === "string" && b !== null && a !== b;
}

export function describeOwner(owner: LockOwner): string {
  return `process ${owner.pid} on ${owner.host} since ${owner.since}`;
}

/**
 * Reads field 22 of /proc/PID/stat. The command name before it may contain spaces and parentheses.
 */
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
