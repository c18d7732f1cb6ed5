import { spawn } from "node:child_process";
import { availableParallelism } from "node:os";
import type { Readable, Writable } from "node:stream";
import { text as readText } from "node:stream/consumers";
import {
  checkArray,
  checkBoolean,
  checkInteger,
  checkOptions,
  checkString,
} from "../core/check-values.js";
import { ArgumentError, ResourceError } from "../core/errors.js";
import { optionName } from "../core/option-names.js";
import type { OnDone } from "./model-answers.js";
import { type SandboxLimits, type SandboxMethod, sandboxMethods } from "./sandbox-methods.js";
import { pythonFiles } from "./sandbox-python.js";

export type { SandboxLimits } from "./sandbox-methods.js";

/** How a program ended. */
export type ProgramEnd =
  | "passed"
  | "assertion"
  | "exception"
  | "memory"
  | "timeout"
  | "exit"
  | "signal";

/** How a program of the model ended, and what it wrote. */
export interface ProgramResult {
  /** Whether the program ran to its end. */
  passed: boolean;
  end: ProgramEnd;
  /** The exception, signal or exit code; empty after success. */
  detail: string;
}

export interface SandboxOptions extends Partial<SandboxLimits> {
  /**
   * Must be true. A model may write any program, and no sandbox is perfect, so the decision is the
   * caller's.
   */
  allowCodeExecution: boolean;
  /** Python interpreter. Default: `python3`. */
  python?: string;
  /** Programs that run at once. Default: one per core. */
  concurrency?: number;
}

const defaults: SandboxLimits = {
  timeoutMs: 3000,
  memoryBytes: 2 ** 30,
  processes: 8,
  diskBytes: 16 * 2 ** 20,
  openFiles: 64,
};

/** Time for Python's start and the end of all processes, in milliseconds. */
const graceMs = 10_000;

/**
 * A program that passes only inside: it sees no files but Python's, has no network, and may not
 * write outside of its folder.
 */
const selfTest = `
import os, socket
for path in ("/etc", "/proc/1", "/sys/kernel", "/var/log"):
    assert not os.path.exists(path), path
assert os.getcwd() == "/tmp" and os.listdir("/tmp") == []
for where in ("/", "/usr", os.path.dirname(os.__file__)):
    try: open(where + "/x", "w")
    except OSError: pass
    else: raise AssertionError("wrote to " + where)
for family in (socket.AF_INET, socket.AF_INET6, 40):
    try: socket.socket(family, socket.SOCK_STREAM)
    except OSError: pass
    else: raise AssertionError("a socket")
`;

/**
 * Runs Python programs that a model has written. Each program has namespaces of its own (network,
 * processes, files, users, inter-process communication), a root folder with nothing but Python, an
 * empty working folder in memory, an empty environment, no rights, a filter of system calls, and
 * limits on time, memory, processes, files and output. All its processes are killed with it.
 *
 *     const sandbox = await Sandbox.open({ allowCodeExecution: true });
 *     const results = await sandbox.runAll(programs);
 *
 * It needs Linux, Python 3, and bubblewrap or util-linux. Where namespaces cannot be had, it
 * refuses; a program is never run without them.
 */
export class Sandbox {
  /** Name of the tool that makes the namespaces: `bubblewrap` or `unshare`. */
  readonly method: string;
  readonly #method: SandboxMethod;
  readonly #limits: SandboxLimits;
  /** Numbers of the programs that may start. */
  readonly #slots: number[];
  readonly #waiting: ((slot: number) => void)[] = [];

  private constructor(method: SandboxMethod, limits: SandboxLimits, concurrency: number) {
    this.method = method.name;
    this.#method = method;
    this.#limits = limits;
    this.#slots = Array.from({ length: concurrency }, (_, slot) => slot);
  }

  /**
   * @throws ArgumentError unless `allowCodeExecution` is true, and for limits out of range
   * @throws ResourceError if this machine has no Python or no namespaces; the message has the reason
   */
  static async open(options: SandboxOptions): Promise<Sandbox> {
    const { python, concurrency, limits } = checkSandboxOptions(options);
    if (process.platform !== "linux") {
      throw new ResourceError(
        `[sandbox] expected Linux, whose namespaces enclose the programs, got ${process.platform}`,
      );
    }
    const files = await pythonFiles(python);
    const { methods, missing: reasons } = await sandboxMethods(files);
    for (const method of methods) {
      const sandbox = new Sandbox(method, limits, concurrency);
      try {
        const { passed, detail } = await sandbox.run(selfTest);
        if (passed) return sandbox;
        reasons.push(`${method.name}: the sandbox does not hold: ${detail}`);
      } catch (error) {
        reasons.push((error as Error).message.replace("[sandbox] ", ""));
      }
    }
    throw new ResourceError(
      "[sandbox] programs that a model writes run only in namespaces of their own, which cannot be had here: " +
        reasons.join("; "),
    );
  }

  /**
   * Runs a program. It waits while as many programs as may run at once do.
   * @throws ResourceError if the sandbox cannot be set up
   */
  async run(program: string, { signal }: { signal?: AbortSignal | undefined } = {}) {
    checkString("sandbox", "program", program);
    const slot =
      this.#slots.pop() ?? (await new Promise<number>((free) => this.#waiting.push(free)));
    try {
      signal?.throwIfAborted();
      return await this.#run(program, slot, signal);
    } finally {
      const next = this.#waiting.shift();
      if (next) next(slot);
      else this.#slots.push(slot);
    }
  }

  /**
   * Runs programs, several at once.
   * @returns one result for each program, in their order
   */
  async runAll(
    programs: readonly string[],
    { signal, onDone }: { signal?: AbortSignal | undefined; onDone?: OnDone } = {},
  ): Promise<ProgramResult[]> {
    checkArray("sandbox", "programs", programs, "an array of strings");
    let done = 0;
    const run = async (program: string): Promise<ProgramResult> => {
      const result = await this.run(program, { signal });
      onDone?.(++done);
      return result;
    };
    return await Promise.all(programs.map(run));
  }

  async #run(
    program: string,
    slot: number,
    signal: AbortSignal | undefined,
  ): Promise<ProgramResult> {
    const [tool, ...args] = this.#method.command(this.#limits, slot) as [string, ...string[]];
    // A machine that runs out of memory ends the program first.
    const first = 'echo 1000 > /proc/self/oom_score_adj; exec "$0" "$@"';
    const child = spawn("/bin/sh", ["-c", first, tool, ...args], {
      cwd: "/",
      detached: true,
      env: {
        HOME: "/tmp",
        TMPDIR: "/tmp",
        LANG: "C.UTF-8",
        OMP_NUM_THREADS: "1",
        OPENBLAS_NUM_THREADS: "1",
      },
      stdio: ["pipe", "ignore", "pipe", "pipe"],
    });
    const killAll = (): void => {
      try {
        // The group has the first process of the namespace; the kernel kills all others with it.
        process.kill(-(child.pid as number), "SIGKILL");
      } catch {
        // All have ended.
      }
    };
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      killAll();
    }, this.#limits.timeoutMs + graceMs);
    signal?.addEventListener("abort", killAll);
    const [stdin, , stderr, answer] = child.stdio as unknown as [
      Writable,
      null,
      Readable,
      Readable,
    ];
    stdin.on("error", () => {}); // a runner that ended early has told why
    stdin.end(program);
    try {
      const spawned = new Promise<never>((_, reject) => child.once("error", reject));
      const [said, complaint] = await Promise.race([
        Promise.all([readText(answer), readText(stderr)]),
        spawned,
      ]);
      signal?.throwIfAborted();
      if (late) return { passed: false, end: "timeout", detail: "killed" };
      return this.#result(said, complaint);
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", killAll);
      killAll();
    }
  }

  #result(said: string, complaint: string): ProgramResult {
    if (said === "" && complaint === "") {
      return {
        passed: false,
        end: "signal",
        detail: "killed by the system, which may lack memory",
      };
    }
    const [end, detail] = said === "" ? ["refused", complaint.trim()] : JSON.parse(said);
    if (end === "refused") throw new ResourceError(`[sandbox] ${this.method}: ${detail}`);
    return { passed: end === "passed", end, detail };
  }
}

function checkSandboxOptions(options: SandboxOptions): {
  python: string;
  concurrency: number;
  limits: SandboxLimits;
} {
  const names = ["allowCodeExecution", "python", "concurrency", ...Object.keys(defaults)];
  checkOptions("sandbox", options, names);
  const { allowCodeExecution = false, python = "python3", ...given } = options;
  const { concurrency = availableParallelism(), ...limits } = given;
  checkBoolean("sandbox", "allowCodeExecution", allowCodeExecution);
  if (!allowCodeExecution) {
    throw new ArgumentError(
      `[sandbox] expected ${optionName("allowCodeExecution")} to be true: this task runs ` +
        "programs that the model writes, in a sandbox on this machine",
    );
  }
  checkString("sandbox", "python", python);
  checkInteger("sandbox", "concurrency", concurrency, { min: 1 });
  for (const [name, value] of Object.entries(limits)) {
    const min =
      { timeoutMs: 1, memoryBytes: 64 * 2 ** 20, diskBytes: 4096, openFiles: 16 }[name] ?? 3;
    checkInteger("sandbox", name, value, { min });
  }
  return { python, concurrency, limits: { ...defaults, ...limits } };
}
