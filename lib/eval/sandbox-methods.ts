import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { promisify } from "node:util";
import type { PythonFiles } from "./sandbox-python.js";
import { sandboxRunner } from "./sandbox-runner.js";

/** Limits of one program. */
export interface SandboxLimits {
  /** Time until the program is killed, in milliseconds. Default: 3000, as in `code_eval`. */
  timeoutMs: number;
  /** Address space of the program, in bytes. Default: 1 GiB. */
  memoryBytes: number;
  /** Threads, and the runner's two processes. A program starts no processes. Default: 8. */
  processes: number;
  /** Largest file, and size of all files together, in bytes. Default: 16 MiB. */
  diskBytes: number;
  /** Open files of each process. Default: 64. */
  openFiles: number;
}

/** A way to start the runner in namespaces. */
export interface SandboxMethod {
  name: string;
  /**
   * The command line for one program.
   * @param slot number of the program among those that run at once
   */
  command(limits: SandboxLimits, slot: number): string[];
}

const toolFolders = ["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin"];

/** Path and help text of a system tool, or null if it is not installed. */
async function findTool(name: string): Promise<{ path: string; help: string } | null> {
  for (const folder of toolFolders) {
    const path = `${folder}/${name}`;
    try {
      const { stdout, stderr } = await promisify(execFile)(path, ["--help"], { timeout: 10_000 });
      return { path, help: stdout + stderr };
    } catch {
      // The next folder may have it.
    }
  }
  return null;
}

/**
 * User ids that no account has, for a caller with all rights: the kernel counts processes by user,
 * and sets the superuser no limit.
 */
async function unusedUids(): Promise<(slot: number) => number> {
  const map = await readFile("/proc/self/uid_map", "utf8");
  const ranges = map.trim().split("\n");
  const [inside, , count] = (ranges.at(-1) as string).trim().split(/\s+/).map(Number);
  const end = (inside as number) + (count as number);
  const start = 2 ** 30 + (process.pid % 2 ** 22) * 64;
  return end > start + 64 ? (slot) => start + (slot % 64) : (slot) => end - 2 - slot;
}

/** The ways of this machine, best first, and the reasons against the others. */
export async function sandboxMethods(
  python: PythonFiles,
): Promise<{ methods: SandboxMethod[]; missing: string[] }> {
  const isRoot = process.getuid?.() === 0;
  const methods: SandboxMethod[] = [];
  const missing: string[] = [];
  const uidOf = isRoot ? await unusedUids() : () => null;
  const runner = (limits: SandboxLimits, slot: number, buildsRoot: boolean): string[] => {
    const { timeoutMs, memoryBytes, processes, diskBytes, openFiles } = limits;
    const settings = {
      buildsRoot,
      paths: python.paths,
      links: python.links,
      uid: uidOf(slot),
      wallSeconds: timeoutMs / 1000,
      cpuSeconds: Math.ceil(timeoutMs / 1000) + 1,
      memoryBytes,
      processes,
      diskBytes,
      fileBytes: diskBytes,
      openFiles,
    };
    const options = ["-I", "-S", "-B", "-X", "utf8"];
    return [python.executable, ...options, "-c", sandboxRunner, JSON.stringify(settings)];
  };
  const bwrap = isRoot ? null : await findTool("bwrap");
  if (isRoot) {
    // bubblewrap keeps the superuser's id, whose processes the kernel does not count.
  } else if (bwrap === null) {
    missing.push("bubblewrap is not installed (Debian, Ubuntu: apt-get install bubblewrap)");
  } else if (!bwrap.help.includes("--disable-userns") || !bwrap.help.includes("--size")) {
    missing.push("bubblewrap is older than 0.8");
  } else {
    const command = (limits: SandboxLimits, slot: number): string[] => [
      bwrap.path,
      ...["--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--as-pid-1"],
      ...python.paths.flatMap((path) => ["--ro-bind", path, path]),
      ...python.links.flatMap(([path, target]) => ["--symlink", target, path]),
      ...["/dev/null", "/dev/zero", "/dev/urandom"].flatMap((path) => ["--dev-bind", path, path]),
      ...["--size", String(limits.diskBytes), "--tmpfs", "/tmp", "--remount-ro", "/"],
      ...["--chdir", "/tmp"],
      ...["--cap-drop", "ALL", "--"],
      ...runner(limits, slot, false),
    ];
    methods.push({ name: "bubblewrap", command });
  }
  const unshare = await findTool("unshare");
  if (unshare === null) {
    missing.push("unshare is not installed (Debian, Ubuntu: apt-get install util-linux)");
  } else {
    const user = isRoot ? [] : ["--user", "--map-root-user"];
    const spaces = ["--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child"];
    const command = (limits: SandboxLimits, slot: number): string[] => [
      ...[unshare.path, ...user, ...spaces, "--"],
      ...runner(limits, slot, true),
    ];
    methods.push({ name: "unshare", command });
  }
  return { methods, missing };
}
