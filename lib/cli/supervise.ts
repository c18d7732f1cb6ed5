import { spawn } from "node:child_process";
import { once } from "node:events";
import { access, readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { exitCodes } from "../core/errors.js";
import { codeOfSignal } from "../core/exit.js";
import { readMetrics, runFiles } from "../train/metrics.js";

export interface SuperviseOptions {
  /**
   * Arguments of `node` that start the run, the script first. `resume` is the checkpoint to start
   * from.
   */
  command: (resume: string) => string[];
  /**
   * Checkpoint for the first start. Default: "auto". Once the run's folder has changed, restarts
   * use its newest checkpoint.
   */
  resume?: string;
  /** Output folder of the run, whose checkpoints and metrics show its progress. */
  out: string;
  /** Number of restarts in a row without a new checkpoint before it gives up. */
  maxRestarts: number;
  /**
   * Pause before the first restart, in milliseconds. It doubles with each restart without progress.
   * Default: 1000.
   */
  delayMs?: number;
  /** Called with messages for the user. */
  onReport: (message: string) => void;
}

/** Exit codes that are final, because a restart would fail in the same way, with the reason. */
const finalCodes: Record<number, string> = {
  [exitCodes.done]: "all steps are done",
  [exitCodes.usage]: "the command line or the configuration is wrong",
  [exitCodes.data]: "the data does not fit",
  [exitCodes.checkpoint]: "checkpoints cannot be read or written",
  [exitCodes.nonFinite]: "too many steps were skipped",
  [exitCodes.stopped]: "it was asked to stop",
};

/**
 * Runs a training run in a child process, and restarts it from its newest checkpoint when it
 * crashes. A parent process is needed because a native fault ends a whole process with all its
 * threads. SIGTERM and SIGINT are forwarded.
 * @returns the child's exit code if it ended by itself, or 70 if it kept crashing
 */
export async function supervise(options: SuperviseOptions): Promise<number> {
  const { out, maxRestarts, delayMs = 1000, onReport } = options;
  const begun = await newestStep(out);
  let newest = begun;
  let fruitless = 0;
  let stop: NodeJS.Signals | null = null;
  let child: ReturnType<typeof start> | undefined;
  let wake = () => {};
  const forward = (signal: NodeJS.Signals) => {
    stop ??= signal;
    child?.kill(signal);
    wake();
  };
  const ignore = () => {};
  process.on("SIGTERM", forward).on("SIGINT", forward).on("SIGHUP", ignore);
  try {
    for (;;) {
      child = start(options.command(newest === begun ? (options.resume ?? "auto") : "auto"));
      const { pid } = child;
      const [code, signal] = (await once(child, "exit")) as [number | null, NodeJS.Signals | null];
      child = undefined;
      if (stop !== null) {
        // A child ended by the forwarded signal had not begun to train. A child ended by another
        // signal has not saved.
        if (signal === stop) return codeOfSignal(stop);
        if (signal !== null)
          onReport(await describeEnd(out, { code, signal, newest, pid: pid as number }));
        return code ?? exitCodes.bug;
      }
      if (code !== null && code in finalCodes) {
        if (code !== exitCodes.done) onReport(`not started again: ${finalCodes[code]}`);
        return code;
      }
      if (askedToStop(code, signal)) {
        onReport("not started again: it was asked to stop before its first step");
        return code ?? codeOfSignal(signal as NodeJS.Signals);
      }
      const before = newest;
      newest = await newestStep(out);
      // The step is lower after a start that went back to an older checkpoint and set the newer
      // ones aside.
      fruitless = newest === before ? fruitless + 1 : 0;
      onReport(await describeEnd(out, { code, signal, newest, pid: pid as number }));
      if (fruitless > maxRestarts) {
        onReport(`given up: ${maxRestarts} restarts in a row brought no new checkpoint`);
        return code ?? exitCodes.bug;
      }
      const pause = Math.min(60_000, delayMs * 2 ** Math.max(0, fruitless - 1));
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, pause);
        wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      if (stop !== null) return exitCodes.stopped;
    }
  } finally {
    process.off("SIGTERM", forward).off("SIGINT", forward).off("SIGHUP", ignore);
  }
}

/** Whether SIGTERM or SIGINT ended a run that had nothing to save. */
function askedToStop(code: number | null, signal: NodeJS.Signals | null): boolean {
  const signals = ["SIGTERM", "SIGINT"] as const;
  return signals.some((each) => signal === each || code === codeOfSignal(each));
}

/**
 * Starts the child in a session of its own, so that Ctrl-C reaches it once, through the supervisor:
 * a second signal would end it without a save. The channel tells the child when the supervisor is
 * gone, so that it never trains on unattended.
 */
function start(command: string[]) {
  return spawn(process.execPath, command, {
    detached: true,
    stdio: ["inherit", "inherit", "inherit", "ipc"],
    env: { ...process.env, LLAMAFORGE_SUPERVISED: "1" },
  });
}

/** Calls back when this process's supervisor is gone. Does nothing without a supervisor. */
export function onSupervisorGone(gone: () => void): void {
  if (process.env.LLAMAFORGE_SUPERVISED !== "1" || process.channel === undefined) return;
  process.once("disconnect", gone);
  // Neither the channel nor its listener keeps a finished run alive.
  process.channel?.unref();
}

/**
 * Step of the newest checkpoint, or -1 without one. Checkpoints appear whole, so the names are
 * enough, and no addon is loaded here.
 */
async function newestStep(out: string): Promise<number> {
  let newest = -1;
  for (const name of await readdir(out).catch(() => [] as string[])) {
    const step = Number(/^step-(\d{1,15})$/.exec(name)?.[1] ?? -1);
    if (step <= newest) continue;
    const complete = await access(join(out, name, "manifest.json")).then(
      () => true,
      () => false,
    );
    if (complete) newest = step;
  }
  return newest;
}

async function describeEnd(
  out: string,
  end: { code: number | null; signal: string | null; newest: number; pid: number },
): Promise<string> {
  const steps = await readMetrics(join(out, runFiles.metrics)).catch(() => []);
  const last = steps.at(-1)?.step;
  const parts = [
    end.signal === null ? `the run ended with ${end.code}` : `the run was ended by ${end.signal}`,
    last === undefined ? "before its first step" : `after step ${last}`,
  ];
  if (end.signal === "SIGKILL") parts.push("(out of memory? see dmesg)");
  const core = end.signal === null ? undefined : await coreOf(end.pid);
  if (core !== undefined) parts.push(`; ${core}`);
  const from = end.newest < 0 ? "the beginning" : `the checkpoint of step ${end.newest}`;
  return `${parts.join(" ")}; the newest state is ${from}`;
}

/** Path of the process's core dump, if the system wrote one. */
async function coreOf(pid: number): Promise<string | undefined> {
  const pattern = await readFile("/proc/sys/kernel/core_pattern", "utf8").then(
    (text) => text.trim(),
    () => "",
  );
  if (pattern.startsWith("|")) return `a core dump, if enabled, went to ${pattern.slice(1)}`;
  const named = pattern.replaceAll("%p", String(pid));
  for (const path of [named, `${named}.${pid}`, "core", `core.${pid}`]) {
    if (path === "" || path.includes("%")) continue;
    const there = await access(path).then(
      () => true,
      () => false,
    );
    if (there) return `core dump: ${path}`;
  }
  return undefined;
}
