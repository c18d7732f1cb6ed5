import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { constants } from "node:os";
import { exitCodes } from "../core/errors.js";
import { freePort } from "./free-port.js";

export interface LaunchOptions {
  /** Number of ranks to start on this host. */
  processes: number;
  /** Arguments of `node` that start one rank, the script first. */
  command: readonly string[];
  /**
   * Time for the other ranks to end by themselves after a failure, in milliseconds. Default:
   * 10,000.
   */
  graceMs?: number;
  /** Called with messages for the user. */
  onReport: (message: string) => void;
}

interface Ended {
  rank: number;
  code: number | null;
  signal: NodeJS.Signals | null;
}

/**
 * Runs one process per rank on this host, with torchrun's variables and a free port. SIGTERM and
 * SIGINT are forwarded to all of them. The first failure ends the run: the other ranks notice it
 * through their connections, and those still running after `graceMs` are killed.
 * @returns 0, or the exit code of the rank that failed first (128 + n if signal n ended it). A rank
 *   that only lost another (exit code 6) counts only if no rank failed otherwise
 */
export async function launch(options: LaunchOptions): Promise<number> {
  const { processes, command, graceMs = 10_000, onReport } = options;
  const shared = {
    WORLD_SIZE: `${processes}`,
    LOCAL_WORLD_SIZE: `${processes}`,
    MASTER_ADDR: "127.0.0.1",
    MASTER_PORT: `${await freePort()}`,
    TORCHELASTIC_RUN_ID: randomBytes(8).toString("hex"),
    // A torchrun around this process may have set it, but no agent serves on the port chosen here.
    TORCHELASTIC_USE_AGENT_STORE: "False",
    // Ranks end when their launcher is gone, like a supervised run.
    LLAMAFORGE_SUPERVISED: "1",
  };
  const children = Array.from({ length: processes }, (_, rank) =>
    start(command, { ...process.env, ...shared, RANK: `${rank}`, LOCAL_RANK: `${rank}` }),
  );
  const alive = new Map(children.map((child, rank) => [rank, child]));
  const forward = (signal: NodeJS.Signals) => {
    for (const child of alive.values()) child.kill(signal);
  };
  const ignore = () => {};
  process.on("SIGTERM", forward).on("SIGINT", forward).on("SIGHUP", ignore);
  const failures: Ended[] = [];
  let killing = false;
  let timer: NodeJS.Timeout | undefined;
  try {
    const ends = children.map(async (child, rank) => {
      const ended = await endOf(child, rank);
      alive.delete(rank);
      if (ended.code === 0 || killing) return;
      failures.push(ended);
      if (failures.length > 1 || alive.size === 0) return;
      onReport(`rank ${rank} ended ${howOf(ended)}; the others are ending`);
      timer = setTimeout(() => {
        killing = true;
        onReport(`killed: rank ${[...alive.keys()].join(", ")}, still there after the failure`);
        for (const left of alive.values()) left.kill("SIGKILL");
      }, graceMs);
    });
    await Promise.all(ends);
  } finally {
    clearTimeout(timer);
    process.off("SIGTERM", forward).off("SIGINT", forward).off("SIGHUP", ignore);
  }
  const [first] = failures;
  if (first === undefined) return 0;
  // The rank that caused the failure may end later than those that lost it. Its exit code must win,
  // so that a final error is not mistaken for one that allows a restart.
  const cause = failures.find(({ code }) => code !== exitCodes.peer) ?? first;
  if (cause !== first) onReport(`rank ${cause.rank} ended ${howOf(cause)}: that was the cause`);
  return exitCodeOf(cause);
}

/**
 * Starts a rank in a session of its own. Ctrl-C in a terminal goes to all processes of the group,
 * and a rank that got the signal twice, from the terminal and from the launcher, would end without
 * a save.
 */
function start(command: readonly string[], env: NodeJS.ProcessEnv): ChildProcess {
  return spawn(process.execPath, command, {
    detached: true,
    stdio: ["ignore", "inherit", "inherit", "ipc"],
    env,
  });
}

async function endOf(child: ChildProcess, rank: number): Promise<Ended> {
  const [code, signal] = (await once(child, "exit")) as [number | null, NodeJS.Signals | null];
  return { rank, code, signal };
}

function howOf({ code, signal }: Ended): string {
  return signal === null ? `with ${code}` : `by ${signal}`;
}

function exitCodeOf({ code, signal }: Ended): number {
  return code ?? 128 + constants.signals[signal as NodeJS.Signals];
}
