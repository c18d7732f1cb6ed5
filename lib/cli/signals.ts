import { exitCodes, UsageError } from "../core/errors.js";

/** Whether a signal has asked the run to stop. */
export interface StopSignals {
  /** The first signal received; null before that. */
  readonly requested: NodeJS.Signals | null;
  /** Restores the previous signal handlers. */
  dispose(): void;
}

export interface StopSignalOptions {
  /** Called at the first signal, for example to tell the trainer and the user. */
  onRequest?: (signal: NodeJS.Signals) => void;
  /** Ends the process at the second signal. */
  exit?: (code: number) => void;
}

/**
 * Catches SIGINT and SIGTERM. The first signal asks the run to finish its step, save and exit with
 * 75. A second one exits with 75 at once, which is safe because checkpoints appear by rename.
 * SIGHUP is ignored: a run outlives its terminal. Handlers only run when the event loop turns, so a
 * training loop must yield with `setImmediate`.
 */
export function catchStopSignals(options: StopSignalOptions = {}): StopSignals {
  const exit = options.exit ?? ((code: number) => process.exit(code));
  let requested: NodeJS.Signals | null = null;
  const stop = (signal: NodeJS.Signals) => {
    if (requested !== null) return exit(exitCodes.stopped);
    requested = signal;
    options.onRequest?.(signal);
  };
  const ignore = () => {};
  process.on("SIGINT", stop);
  process.on("SIGTERM", stop);
  process.on("SIGHUP", ignore);
  return {
    get requested() {
      return requested;
    },
    dispose() {
      process.off("SIGINT", stop);
      process.off("SIGTERM", stop);
      process.off("SIGHUP", ignore);
    },
  };
}

/** Error codes of a stream whose reader or terminal is gone. */
const goneCodes = new Set(["EPIPE", "EIO", "ERR_STREAM_DESTROYED", "ECONNRESET", "EBADF"]);
/** Error codes of a stream whose file cannot grow any more. */
const fullCodes = new Set(["ENOSPC", "EDQUOT", "EFBIG"]);

let outputMayBeLost = false;

/** Ignores all output errors from here on, because the work is worth more than its messages. */
export function tolerateFullOutput(): void {
  outputMayBeLost = true;
}

/**
 * Keeps the process alive when nobody reads its output any more (`| head -1`, a closed terminal).
 * Other stream errors still surface, because a partly written result is useless.
 */
export function tolerateClosedOutput(streams = [process.stdout, process.stderr]): void {
  for (const stream of streams) {
    stream.on("error", (error: NodeJS.ErrnoException) => {
      const { code = "", message } = error;
      if (outputMayBeLost || goneCodes.has(code)) return;
      if (!fullCodes.has(code)) throw error;
      throw new UsageError(`the output cannot be written: ${message}`, { cause: error });
    });
  }
}
