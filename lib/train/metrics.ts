import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { dirname, join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import { expectUnmoved, MovedFolderError } from "../checkpoint/moved.js";
import type { RunConfig } from "../config/index.js";
import type { RecipeChange, RecordedChange } from "../config/recipe.js";
import { UsageError } from "../core/errors.js";
import type { FolderIdentity } from "../files/folder-identity.js";
import { makeFolder } from "../files/make-folder.js";
import { replaceFile } from "../files/replace-file.js";
import { openRegular, readSmallFile, sizeLimits, utf8Of } from "../files/small-file.js";
import type { Fp8Figures } from "../model/fp8-monitor.js";
import type { DeviceWaitMs, PauseMs } from "./device-waits.js";
import type { HostStep } from "./run-times.js";

/**
 * Record of one optimizer step. `loss` and `gradNorm` are NaN or infinite if the step's values
 * were.
 */
export interface StepMetrics {
  /** Number of this step; the first is 1. */
  step: number;
  /** Number of tokens trained on so far, including this step. */
  tokens: number;
  /** Mean cross-entropy in nats per token, or what else the run minimises. */
  loss: number;
  lr: number;
  /** Global gradient norm before clipping. */
  gradNorm: number;
  tokensPerSecond: number;
  stepMs: number;
  /** Part of stepMs in which the host waited for data; the device may have had work. */
  dataWaitMs: number;
  /**
   * Time in which the device had no work, before and within this step. Absent in records of older
   * versions.
   */
  deviceWaitMs?: DeviceWaitMs;
  /**
   * Pauses of training after this step, which count in no step's stepMs. The run's last save comes
   * after the record.
   */
  pauseMs?: PauseMs;
  /** Activity of the main thread. */
  host?: HostStep;
  /** Bytes of live tensors on the device at the end of the step. */
  deviceBytes: number;
  /** Resident memory of the process in bytes. */
  rssBytes: number;
  /** Figures of what the run minimises, besides the loss, such as `rewards/margins`. */
  figures?: Record<string, number>;
  /** Figures of the caller's own (`extraMetrics` of a trainer). */
  extra?: Record<string, number>;
  /**
   * Figures of the first micro-batch's tensors in fp8, in some of an fp8 run's steps; with several
   * processes, means over them.
   */
  fp8?: Fp8Figures;
  /** Why the guard skipped the update; absent when it did not. */
  skipped?: string;
  /** Held-out loss after this step, if it was measured. */
  validation?: Validation;
  /** Sample text written after this step, if any. */
  samples?: Sample[];
  /** Scores on tasks after this step, if they were measured. */
  scores?: TaskScore[];
  /** End of the step, ISO 8601. */
  time: string;
}

/** Loss on held-out data. */
export interface Validation {
  loss: number;
  /**
   * Bits per byte of text, comparable between tokenizers; null if the data does not say how many
   * bytes its tokens stand for.
   */
  bitsPerByte: number | null;
  /** Figures of what the run minimises on held-out data, such as `rewards/accuracies`. */
  figures?: Record<string, number>;
}

/** Score of a task, or of a group of tasks. */
export interface TaskScore {
  /** Name of the task or group, such as `arc_easy`. */
  task: string;
  /** Metric of lm-evaluation-harness, such as `acc_norm`; `average` for groups that have one. */
  metric: string;
  /** Share of right answers, 0 to 1; for `bits_per_byte` and `perplexity` that measure. */
  value: number;
  /** Standard error; null if there is none. */
  error: number | null;
}

/** Text that a model wrote during training. */
export interface Sample {
  prompt: string;
  /** The continuation, without the prompt. */
  text: string;
}

/** Facts about a run apart from its steps: `run.json`. */
export interface RunInfo {
  config: RunConfig;
  /** Device of one process, such as `AMD EPYC 9554, 2 threads`. */
  deviceName: string;
  /** Number of processes that train together, with a device each. */
  worldSize: number;
  parameters: number;
  versions: Record<string, string>;
  /** First start of the run, ISO 8601. */
  started: string;
  /** Changes of its recipe when it resumed from a checkpoint, in order of time. */
  changes?: RecordedChange[];
}

/** Files of a run's folder, in addition to its checkpoints. */
export const runFiles = {
  info: "run.json",
  metrics: "metrics.jsonl",
  report: "report.html",
} as const;

/** Replaces `run.json` as a whole. */
export async function writeRunInfo(folder: string, info: RunInfo): Promise<void> {
  await replaceFile(join(folder, runFiles.info), `${JSON.stringify(info, null, 2)}\n`);
}

/**
 * Writes `run.json` for a run that starts or resumes. The time of the first start and the history
 * of changes are kept.
 * @param from the step that it resumes from, and the changes made there
 */
export async function recordRun(
  folder: string,
  info: Omit<RunInfo, "started" | "changes">,
  from: { step: number; changes: readonly RecipeChange[] } = { step: 0, changes: [] },
): Promise<void> {
  const earlier = await readRunInfo(folder).catch(() => undefined);
  const time = new Date().toISOString();
  const history = [...(Array.isArray(earlier?.changes) ? earlier.changes : [])];
  for (const { option, from: old, to } of from.changes) {
    const change = { step: from.step, option, from: old, to };
    // A start that died before its first save resumes from the same checkpoint again.
    const known = history.some(({ time: _, ...other }) => isDeepStrictEqual(other, change));
    if (!known) history.push({ ...change, time });
  }
  const changes = history.length > 0 ? { changes: history } : {};
  await writeRunInfo(folder, { ...info, started: earlier?.started ?? time, ...changes });
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

/**
 * Encodes one line of metrics.jsonl. JSON has no NaN, so a loss or norm that is not finite is
 * written as null.
 */
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

/** Longest line of a step's record. Hundreds of samples take less. */
const maxLineBytes = 2 ** 26;

/**
 * Yields the lines of a file, each with the offset of its end. A last line without a newline is
 * skipped, and so are lines longer than any record. A crash may leave gigabytes of zeros at the
 * end, so each byte is read only once.
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
 * Reads the steps of a metrics.jsonl, in order. A line torn by a crash is skipped. Where a run
 * repeated steps after going back, the repetition counts.
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

/** Offset after the last step that counts when a run resumes from `lastStep`. */
async function endOfStep(file: string, lastStep: number): Promise<number> {
  if (lastStep === 0) return 0;
  let kept = 0;
  for await (const { line, end } of wholeLines(file)) {
    if ((decodeStep(line)?.step ?? 0) > lastStep) break;
    kept = end;
  }
  return kept;
}

/**
 * Bytes of lines held back while the disk refuses them. Beyond this, lines are lost and counted.
 */
const maxPendingBytes = 16 * 1024 * 1024;

interface PendingLine {
  bytes: Buffer;
  /** Number of bytes at the end of the file that the line replaces. */
  replaces: number;
}

/**
 * Appends steps to metrics.jsonl without ever stopping the training. Lines are written in the
 * background. A full disk or a closed pipe only causes a warning, and unwritten lines are tried
 * again with the next step.
 */
export class MetricsWriter {
  #handle: FileHandle | null = null;
  #pending: PendingLine[] = [];
  /** Length of the last step's line in bytes; 0 once it cannot be replaced. */
  #lastBytes = 0;
  #pendingBytes = 0;
  #pump: Promise<void> | null = null;
  #lost = 0;
  #moved: MovedFolderError | null = null;
  #warned = new Set<string>();
  readonly #file: string;
  readonly #warn: (message: string) => void;
  readonly #folder: FolderIdentity | null;

  private constructor(
    file: string,
    warn: (message: string) => void,
    folder: FolderIdentity | null,
  ) {
    this.#file = file;
    this.#warn = (message) => warn(folder?.named(message) ?? message);
    this.#folder = folder;
  }

  /**
   * The reason to end the run, once a write has found that its folder was moved. Nothing is written
   * after that.
   */
  get moved(): MovedFolderError | null {
    return this.#moved;
  }

  /**
   * Opens a run's metrics. Steps after `lastStep` are dropped, because a resumed run records them
   * again.
   * @param lastStep step that the run resumes from; 0 starts an empty file
   * @param folder identity of the run's folder: nothing is written if another folder has taken its
   *   place
   */
  static async open(
    file: string,
    lastStep: number,
    warn: (message: string) => void = (message) => console.warn(message),
    folder: FolderIdentity | null = null,
  ): Promise<MetricsWriter> {
    const writer = new MetricsWriter(file, warn, folder);
    try {
      await expectUnmoved(folder);
      await makeFolder(dirname(file));
      writer.#handle = await openToWrite(file);
      const isFile = (await writer.#handle.stat()).isFile();
      if (isFile) await writer.#handle.truncate(await endOfStep(file, lastStep));
    } catch (error) {
      writer.#report(error);
    }
    return writer;
  }

  /** Adds a step's record. Returns at once. */
  write(metrics: StepMetrics): void {
    if (!this.#add(metrics, 0)) this.#lost++;
  }

  /**
   * Replaces the last step's record, adding results made after the step: validation, samples. The
   * first record is in the file by then, so a failure of these never costs it.
   */
  amend(metrics: StepMetrics): void {
    if (this.#lastBytes > 0) this.#add(metrics, this.#lastBytes);
  }

  #add(metrics: StepMetrics, last: number): boolean {
    const bytes = Buffer.from(encodeStep(metrics));
    // A shorter line would leave the rest of the longer one behind it. It is appended instead, and
    // the repetition counts.
    const replaces = bytes.length < last ? 0 : last;
    const fits = this.#pendingBytes + bytes.length <= maxPendingBytes;
    if (fits) {
      this.#pending.push({ bytes, replaces });
      this.#pendingBytes += bytes.length;
      this.#lastBytes = bytes.length;
    } else if (replaces === 0) this.#lastBytes = 0;
    this.#start();
    return fits;
  }

  /** Waits until every line added so far was written or refused. Never throws. */
  async flush(): Promise<void> {
    await this.#pump;
    await this.#start();
  }

  async close(): Promise<void> {
    await this.flush();
    await this.#handle?.close().catch((error: unknown) => this.#report(error));
    this.#handle = null;
    const missing = this.#moved ? 0 : this.#lost + this.#pending.length;
    if (missing > 0) this.#warn(`${this.#file} lacks ${missing} steps, which could not be written`);
  }

  /** Starts a drain unless one is running, so that lines keep their order. */
  #start(): Promise<void> {
    this.#pump ??= this.#drain().finally(() => {
      this.#pump = null;
    });
    return this.#pump;
  }

  async #drain(): Promise<void> {
    try {
      while (this.#pending.length > 0 && this.#moved === null) {
        await expectUnmoved(this.#folder);
        this.#handle ??= await openToWrite(this.#file);
        const line = this.#pending[0]!;
        const { bytes, replaces } = line;
        const place = await placeOf(this.#handle, replaces);
        const { bytesWritten } = await this.#handle.write(bytes, 0, bytes.length, place);
        this.#pendingBytes -= bytesWritten;
        if (bytesWritten === bytes.length) this.#pending.shift();
        line.bytes = bytes.subarray(bytesWritten);
        line.replaces = Math.max(0, replaces - bytesWritten);
      }
    } catch (error) {
      this.#report(error);
    }
  }

  /**
   * Reports each kind of failure once, because a full disk would otherwise cause a message at every
   * step.
   */
  #report(error: unknown): void {
    if (error instanceof MovedFolderError) {
      this.#moved = error;
      return;
    }
    const { code, message } = error as NodeJS.ErrnoException;
    const kind = code ?? message;
    if (this.#warned.has(kind)) return;
    this.#warned.add(kind);
    this.#warn(
      `cannot write ${this.#file}: ${message}; training goes on, and writing is tried again`,
    );
  }
}

/**
 * Opens the file for writing. It may also be a device, or a pipe with a reader. A pipe without a
 * reader is refused, where opening would otherwise block.
 */
async function openToWrite(file: string): Promise<FileHandle> {
  // Lines are written at given positions, which O_APPEND would ignore.
  const { O_WRONLY, O_CREAT, O_NONBLOCK } = constants;
  return await open(file, O_WRONLY | O_CREAT | O_NONBLOCK);
}

/**
 * Position of a line that replaces the last bytes of a file; null for a pipe, whose reader gets the
 * step twice.
 */
async function placeOf(handle: FileHandle, replaces: number): Promise<number | null> {
  const status = await handle.stat();
  return status.isFile() ? Math.max(0, status.size - replaces) : null;
}
