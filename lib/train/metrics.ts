import { constants } from "node:fs";
import { type FileHandle, open, rename } from "node:fs/promises";
import { dirname, join } from "node:path";
import { UsageError } from "../errors.js";
import { makeFolder } from "../make-folder.js";
import { openRegular, readSmallFile, sizeLimits, utf8Of } from "../small-file.js";
import type { RunConfig } from "./config.js";

/** One optimizer step as it is recorded. `loss` and `gradNorm` are NaN or infinite when the step was. */
export interface StepMetrics {
  /** Number of this step; the first is 1. */
  step: number;
  /** Tokens trained on so far, this step included. */
  tokens: number;
  /** Mean cross-entropy in nats per token. */
  loss: number;
  lr: number;
  /** Global gradient norm before clipping. */
  gradNorm: number;
  tokensPerSecond: number;
  stepMs: number;
  /** Part of stepMs spent waiting for data. */
  dataWaitMs: number;
  /** Bytes of live tensors on the device at the end of the step. */
  deviceBytes: number;
  /** Resident memory of the process. */
  rssBytes: number;
  /** Why the guard skipped the update; absent when it did not. */
  skipped?: string;
  /** Held-out loss after this step, when it was measured. */
  validation?: Validation;
  /** Text written after this step, when it was. */
  samples?: Sample[];
  /** When the step ended, ISO 8601. */
  time: string;
}

export interface Validation {
  loss: number;
  /** Comparable between tokenizers; null if the data does not say how many bytes its tokens stand for. */
  bitsPerByte: number | null;
}

export interface Sample {
  prompt: string;
  /** The continuation, without the prompt. */
  text: string;
}

/** What a run is, beside its steps: `run.json`. */
export interface RunInfo {
  config: RunConfig;
  /** Of one process, e.g. `AMD EPYC 9554, 2 threads`. */
  deviceName: string;
  /** Processes that train together, a device each. */
  worldSize: number;
  parameters: number;
  versions: Record<string, string>;
  /** When the run first started, ISO 8601. */
  started: string;
}

/** Files of a run's folder beside its checkpoints. */
export const runFiles = {
  info: "run.json",
  metrics: "metrics.jsonl",
  report: "report.html",
} as const;

/** Replaces `run.json` as a whole. */
export async function writeRunInfo(folder: string, info: RunInfo): Promise<void> {
  await replaceFile(join(folder, runFiles.info), `${JSON.stringify(info, null, 2)}\n`);
}

/** Writes `run.json` for a run that starts or goes on; when it first started stays. */
export async function recordRun(folder: string, info: Omit<RunInfo, "started">): Promise<void> {
  const earlier = await readRunInfo(folder).catch(() => undefined);
  await writeRunInfo(folder, { ...info, started: earlier?.started ?? new Date().toISOString() });
}

/** @throws UsageError if the folder holds no readable run.json */
export async function readRunInfo(folder: string): Promise<RunInfo> {
  const file = join(folder, runFiles.info);
  try {
    const info = JSON.parse(
      utf8Of(await readSmallFile(file, { limit: sizeLimits.run })),
    ) as RunInfo;
    if (!info?.config?.model || !info.versions || !info.started)
      throw new Error("it is no record of a run");
    return { ...info, worldSize: info.worldSize ?? 1 };
  } catch (cause) {
    const reason = (cause as Error).message;
    throw new UsageError(`${folder} is not the folder of a run: cannot read ${file}: ${reason}`, {
      cause,
    });
  }
}

/** One line of metrics.jsonl. JSON has no NaN, so a loss or norm that is not finite is written as null. */
export function encodeStep(metrics: StepMetrics): string {
  return `${JSON.stringify(metrics)}\n`;
}

function decodeStep(line: string): StepMetrics | undefined {
  let record: Partial<StepMetrics> | null;
  try {
    record = JSON.parse(line) as Partial<StepMetrics> | null;
  } catch {
    return undefined;
  }
  if (record === null || !Number.isInteger(record.step)) return undefined;
  record.loss ??= Number.NaN;
  record.gradNorm ??= Number.NaN;
  if (record.validation) record.validation.loss ??= Number.NaN;
  return record as StepMetrics;
}

/** A longer line is no step's record: hundreds of samples have less. */
const maxLineBytes = 2 ** 26;

/**
 * The lines of a file with the offset where each ends; a last one without a newline is left out, and so is what is longer
 * than any record. What a crash has left at the end may be gigabytes of zeros: each byte is looked at once.
 */
async function* wholeLines(file: string): AsyncGenerator<{ line: string; end: number }> {
  const handle = await openRegular(file);
  let offset = 0;
  let parts: Buffer[] = [];
  let held = 0;
  for await (const chunk of handle.createReadStream({
    highWaterMark: 2 ** 20,
  }) as AsyncIterable<Buffer>) {
    let from = 0;
    for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10, from)) {
      if (held <= maxLineBytes) {
        parts.push(chunk.subarray(from, end));
        yield { line: Buffer.concat(parts).toString("utf8"), end: offset + end + 1 };
      }
      parts = [];
      held = 0;
      from = end + 1;
    }
    held += chunk.length - from;
    if (held > maxLineBytes) parts = [];
    else if (from < chunk.length) parts.push(chunk.subarray(from));
    offset += chunk.length;
  }
}

/**
 * The steps of a metrics.jsonl, in order. A line torn by a crash is left out; where a run was repeated
 * from an earlier step, the repetition counts.
 * @throws UsageError if the file cannot be read
 */
export async function readMetrics(file: string): Promise<StepMetrics[]> {
  const steps: StepMetrics[] = [];
  try {
    for await (const { line } of wholeLines(file)) {
      const record = decodeStep(line);
      if (record === undefined) continue;
      while (steps.length > 0 && steps.at(-1)!.step >= record.step) steps.pop();
      steps.push(record);
    }
  } catch (cause) {
    throw new UsageError(`cannot read ${file}: ${(cause as Error).message}`, { cause });
  }
  return steps;
}

/** Where the file ends after the last step that counts when a run goes on from `lastStep`. */
async function endOfStep(file: string, lastStep: number): Promise<number> {
  if (lastStep === 0) return 0;
  let kept = 0;
  for await (const { line, end } of wholeLines(file)) {
    if ((decodeStep(line)?.step ?? 0) > lastStep) break;
    kept = end;
  }
  return kept;
}

/** Lines held back while the disk refuses them; beyond this they are lost, and counted. */
const maxPendingBytes = 16 * 1024 * 1024;

/**
 * Appends steps to metrics.jsonl without ever stopping the training: writing happens behind, a full disk
 * or a closed pipe is a warning, and what could not be written is tried again with the next step.
 */
export class MetricsWriter {
  #handle: FileHandle | null = null;
  #pending: Buffer[] = [];
  #pendingBytes = 0;
  #pump: Promise<void> | null = null;
  #lost = 0;
  #warned = new Set<string>();
  readonly #file: string;
  readonly #warn: (message: string) => void;

  private constructor(file: string, warn: (message: string) => void) {
    this.#file = file;
    this.#warn = warn;
  }

  /**
   * Opens a run's metrics. Steps after `lastStep` are dropped: a resumed run records them again.
   * @param lastStep step that the run goes on from; 0 starts an empty file
   */
  static async open(
    file: string,
    lastStep: number,
    warn: (message: string) => void = (message) => console.warn(message),
  ): Promise<MetricsWriter> {
    const writer = new MetricsWriter(file, warn);
    try {
      await makeFolder(dirname(file));
      writer.#handle = await openToAppend(file);
      const isFile = (await writer.#handle.stat()).isFile();
      if (isFile) await writer.#handle.truncate(await endOfStep(file, lastStep));
    } catch (error) {
      writer.#report(error);
    }
    return writer;
  }

  /** Takes a step's record; returns at once. */
  write(metrics: StepMetrics): void {
    const line = Buffer.from(encodeStep(metrics));
    if (this.#pendingBytes + line.length > maxPendingBytes) {
      this.#lost++;
    } else {
      this.#pending.push(line);
      this.#pendingBytes += line.length;
    }
    this.#start();
  }

  /** Waits until everything written so far is in the file, or was refused. Never throws. */
  async flush(): Promise<void> {
    await this.#pump;
    await this.#start();
  }

  async close(): Promise<void> {
    await this.flush();
    await this.#handle?.close().catch((error: unknown) => this.#report(error));
    this.#handle = null;
    const missing = this.#lost + this.#pending.length;
    if (missing > 0) this.#warn(`${this.#file} lacks ${missing} steps, which could not be written`);
  }

  /** At most one drain at a time, so that lines keep their order. */
  #start(): Promise<void> {
    this.#pump ??= this.#drain().finally(() => {
      this.#pump = null;
    });
    return this.#pump;
  }

  async #drain(): Promise<void> {
    try {
      while (this.#pending.length > 0) {
        this.#handle ??= await openToAppend(this.#file);
        const line = this.#pending[0]!;
        const { bytesWritten } = await this.#handle.write(line);
        this.#pendingBytes -= bytesWritten;
        if (bytesWritten === line.length) this.#pending.shift();
        else this.#pending[0] = line.subarray(bytesWritten);
      }
    } catch (error) {
      this.#report(error);
    }
  }

  /** Says each kind of failure once: a full disk would otherwise say so at every step. */
  #report(error: unknown): void {
    const { code, message } = error as NodeJS.ErrnoException;
    const kind = code ?? message;
    if (this.#warned.has(kind)) return;
    this.#warned.add(kind);
    this.#warn(
      `cannot write ${this.#file}: ${message}; training goes on, and writing is tried again`,
    );
  }
}

/** A device or a pipe that is read may take the steps; one that nobody reads is refused, where opening it would wait. */
async function openToAppend(file: string): Promise<FileHandle> {
  const { O_WRONLY, O_CREAT, O_APPEND, O_NONBLOCK } = constants;
  return await open(file, O_WRONLY | O_CREAT | O_APPEND | O_NONBLOCK);
}

/** Old content or new, never half: written beside, then renamed over. */
async function replaceFile(file: string, content: string): Promise<void> {
  const temporary = `${file}.tmp`;
  const { O_WRONLY, O_CREAT, O_TRUNC } = constants;
  const handle = await openRegular(temporary, { flags: O_WRONLY | O_CREAT | O_TRUNC });
  try {
    await handle.writeFile(content);
    await handle.sync();
  } finally {
    await handle.close();
  }
  await rename(temporary, file);
}
