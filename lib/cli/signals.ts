import { exitCodes, UsageError } from "../core/errors.js";

/** Whether somebody asked the run to stop. */
export interface StopSignals {
  /** The signal that asked, null while nobody did. */
  readonly requested: NodeJS.Signals | null;
  /** Gives the signals back to their former handlers. */
  dispose(): void;
}

export interface StopSignalOptions {
  /** Called at the first signal, e.g. to tell the trainer and the user. */
  onRequest?: (signal: NodeJS.Signals) => void;
  /** Ends the process at the second signal. */
  exit?: (code: number) => void;
}

/**
 * SIGINT and SIGTERM ask the run to finish its step, save and exit with 75; a second one exits with 75 at
 * once, which is safe because checkpoints appear by rename. SIGHUP is ignored: a run outlives its terminal.
 * Handlers only run when the event loop turns, so a training loop must yield by `setImmediate`.
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

/** What a stream reports when its reader or terminal is gone. */
const goneCodes = new Set(["EPIPE", "EIO", "ERR_STREAM_DESTROYED", "ECONNRESET", "EBADF"]);
/** What it reports when the file that it goes to takes no more. */
const fullCodes = new Set(["ENOSPC", "EDQUOT", "EFBIG"]);

let outputMayBeLost = false;

/** From here on no fault of the output is an error: what is being done is worth more than what is said of it. */
export function tolerateFullOutput(): void {
  outputMayBeLost = true;
}

/**
 * Lets the process live on when nobody reads its output any more (`| head -1`, a closed terminal). Other faults of the
 * streams still surface: a result that was written in part is none.
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
