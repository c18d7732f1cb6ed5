/**
 * The share of the machine that this process may use: a container's limits and those of the
 * hardware.
 */
import { readFileSync } from "node:fs";
import { availableParallelism, freemem, totalmem } from "node:os";
import { join } from "node:path";

/** Limits set by this process's control groups; null where there is none. */
export interface GroupLimits {
  /** Processor time, in cores: 1.5 is three seconds of work in two. */
  cores: number | null;
  memoryBytes: number | null;
  /** Bytes left below the memory limit. File pages that the system can drop count as free. */
  freeBytes: number | null;
}

/** A hierarchy of control groups, with its mount point and the group that is mounted there. */
interface Mount {
  version: 1 | 2;
  controllers: readonly string[];
  group: string;
  place: string;
}

/**
 * The narrowest limits of this process's control groups and of the groups around them, of versions
 * 1 and 2.
 * @param root folder that stands for `/`
 */
export function groupLimits(root = "/"): GroupLimits {
  const limits: GroupLimits = { cores: null, memoryBytes: null, freeBytes: null };
  for (const mount of mounts(root)) {
    const own = ownGroup(root, mount);
    if (own === null) continue;
    for (const folder of foldersUpTo(join(root, mount.place), own)) narrow(limits, mount, folder);
  }
  return limits;
}

/**
 * Number of threads that can run at once: at most the process's cores and the CPU time of its
 * control groups.
 */
export function usableThreads(root = "/"): number {
  const { cores } = groupLimits(root);
  return Math.max(1, Math.min(availableParallelism(), Math.floor(cores ?? Number.MAX_VALUE)));
}

/** Memory that this process may use and the part of it that is free now, in bytes. */
export function usableMemory(root = "/"): { bytes: number; freeBytes: number } {
  const { memoryBytes, freeBytes } = groupLimits(root);
  return {
    bytes: Math.min(totalmem(), memoryBytes ?? Number.MAX_VALUE),
    freeBytes: Math.min(freemem(), freeBytes ?? Number.MAX_VALUE),
  };
}

/**
 * Default number of threads of the CPU device: OMP_NUM_THREADS, which programs on a shared machine
 * obey, or else as many as can run at once.
 */
export function standardThreads(environment: NodeJS.ProcessEnv = process.env, root = "/"): number {
  // A list has one number for each level of nesting.
  const named = Number(/^\s*(\d+)\s*(,|$)/.exec(environment.OMP_NUM_THREADS ?? "")?.[1] ?? 0);
  return Math.min(1024, named > 0 ? named : usableThreads(root));
}

/** Resident memory of this process in bytes. Without /proc, the highest so far. */
export function residentBytes(): number {
  try {
    return process.memoryUsage.rss();
  } catch {
    return process.resourceUsage().maxRSS * 1024;
  }
}

/**
 * Parses the fields of mountinfo: id, parent, device, group, place, options, "-", type, source,
 * options of the file system.
 */
function mounts(root: string): Mount[] {
  const lines = (contentOf(join(root, "proc/self/mountinfo")) ?? "").split("\n");
  return lines.flatMap((line): Mount[] => {
    const [before = "", after = ""] = line.split(" - ");
    const [, , , group, place] = before.split(" ");
    const [type, , options = ""] = after.split(" ");
    if (group === undefined || place === undefined) return [];
    if (type === "cgroup2") return [{ version: 2, controllers: [], group, place }];
    if (type !== "cgroup") return [];
    return [{ version: 1, controllers: options.split(","), group, place }];
  });
}

/** Folder of this process's group; null in a hierarchy that it does not belong to. */
function ownGroup(root: string, { version, controllers, group, place }: Mount): string | null {
  for (const line of (contentOf(join(root, "proc/self/cgroup")) ?? "").split("\n")) {
    const [, number, names = "", path = ""] = /^(\d+):([^:]*):(.*)$/.exec(line) ?? [];
    const mine =
      version === 2
        ? number === "0" && names === ""
        : names !== "" && names.split(",").every((name) => controllers.includes(name));
    if (!mine) continue;
    // In a container the mount may begin at the container's own group, while the path is still the
    // host's.
    const below = path === group || path.startsWith(`${group}/`) ? path.slice(group.length) : path;
    return join(root, place, group === "/" ? path : below);
  }
  return null;
}

/** A folder and its parents, up to the top. */
function foldersUpTo(top: string, folder: string): string[] {
  const folders = [top];
  const inside = folder.startsWith(`${top}/`) ? folder.slice(top.length + 1).split("/") : [];
  for (const name of inside) folders.push(join(folders.at(-1) as string, name));
  return folders;
}

function narrow(limits: GroupLimits, { version, controllers }: Mount, folder: string): void {
  const number = (name: string): number | null => {
    const text = contentOf(join(folder, name))?.trim() ?? "";
    return /^-?\d+$/.test(text) ? Number(text) : null;
  };
  const least = (a: number | null, b: number): number => Math.min(a ?? b, b);
  const [quota, period] =
    version === 2
      ? (contentOf(join(folder, "cpu.max")) ?? "").trim().split(" ").map(Number)
      : controllers.includes("cpu")
        ? [number("cpu.cfs_quota_us"), number("cpu.cfs_period_us")]
        : [];
  if (quota && period && quota > 0 && period > 0)
    limits.cores = least(limits.cores, quota / period);
  if (version === 1 && !controllers.includes("memory")) return;
  const [most, used, idle] =
    version === 2
      ? [number("memory.max"), number("memory.current"), "inactive_file"]
      : [number("memory.limit_in_bytes"), number("memory.usage_in_bytes"), "total_inactive_file"];
  // Version 1 reports "no limit" as the largest number of pages.
  if (most === null || most >= 2 ** 62) return;
  limits.memoryBytes = least(limits.memoryBytes, most);
  const lines = contentOf(join(folder, "memory.stat")) ?? "";
  const dropped = Number(new RegExp(`^${idle} (\\d+)$`, "m").exec(lines)?.[1] ?? 0);
  const free = Math.max(0, most - Math.max(0, (used ?? 0) - dropped));
  limits.freeBytes = least(limits.freeBytes, free);
}

/** Content of a file; null if it does not exist (no control groups, or no /proc). */
function contentOf(path: string): string | null {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return null;
  }
}
