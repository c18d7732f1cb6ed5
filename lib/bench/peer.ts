import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { UsageError } from "../core/errors.js";
import type { DecodeResult } from "./decode.js";
import type { ParityResult } from "./parity.js";

/** A peer program's own measurement of the same training. */
export interface PeerResult {
  command: string;
  program: string;
  version: string | null;
  tokensPerSecond: number;
  /** Largest sum of its tensors; null if the program does not report it. */
  peakBytes: number | null;
  /** The JSON object that the program printed as its result. */
  output: Record<string, unknown>;
}

/** bench/peer/torch_train.py, which is part of the package. */
export const torchPeer = fileURLToPath(new URL("../../bench/peer/torch_train.py", import.meta.url));

export interface PeerOptions {
  /** The Python interpreter, or another program that runs the script. */
  interpreter: string;
  /** Default: `torchPeer`. */
  script?: string;
  /** Arguments that replace those that describe the run; split at spaces. */
  args?: string;
  /** Called with every other line that the program prints, as it arrives. */
  onLine?: (line: string) => void;
}

/** The arguments that tell a peer program what to train. */
export function peerArguments({ model, run, device }: ParityResult): string[] {
  const { name: _, parameters: __, ...shape } = model;
  return [
    ...["--model", JSON.stringify(shape)],
    ...["--sequence-length", String(run.sequenceLength)],
    ...["--micro-batch", String(run.microBatch), "--accumulation", String(run.accumulation)],
    ...["--steps", String(run.steps), "--warmup", String(run.warmup)],
    ...["--device", device.id, "--precision", run.precision],
    // PyTorch's flash attention does not support fp32.
    ...(run.precision === "fp32" ? ["--attention", "any"] : []),
    // cuDNN's attention is the faster one on Hopper.
    ...(run.precision === "fp8" ? ["--attention", "cudnn"] : []),
  ];
}

/**
 * Runs a peer program. Its result is the last line of output that is a JSON object, with
 * `tokensPerSecond` (or `tok_s`).
 * @throws UsageError if the program cannot be started, fails, or gives no result; the message
 *   contains the end of its output
 */
export async function runPeer(ours: ParityResult, options: PeerOptions): Promise<PeerResult> {
  const { interpreter, script = torchPeer, onLine } = options;
  const args = options.args?.split(/\s+/).filter(Boolean) ?? peerArguments(ours);
  const { command, tokensPerSecond, output } = await runProgram(interpreter, script, args, onLine);
  const { program, version, peakBytes, mem_gb: gibibytes } = output;
  return {
    command,
    program: String(program ?? script),
    version: version === undefined ? null : String(version),
    tokensPerSecond,
    peakBytes: typeof peakBytes === "number" ? peakBytes : fromGibibytes(gibibytes),
    output,
  };
}

/** bench/peer/torch_decode.py, which is part of the package. */
export const torchDecodePeer = fileURLToPath(
  new URL("../../bench/peer/torch_decode.py", import.meta.url),
);

/** A peer program's own measurement of decoding. */
export interface DecodePeer {
  command: string;
  program: string;
  version: string | null;
  rows: { batch: number; tokensPerSecond: number }[];
}

/**
 * Runs a peer program that decodes what a result describes.
 * @throws UsageError as `runPeer`, and for a program that leaves out a batch
 */
export async function runDecodePeer(
  ours: DecodeResult,
  { interpreter, script = torchDecodePeer, onLine }: PeerOptions,
): Promise<DecodePeer> {
  const { model, run, rows, device } = ours;
  const batches = rows.map(({ batch }) => batch);
  const args = [
    ...["--model", JSON.stringify(model.shape), "--batches", batches.join()],
    ...["--context", String(run.promptTokens + run.tokens), "--tokens", String(run.tokens)],
    ...["--runs", String(run.runs), "--device", device.id, "--precision", run.precision],
  ];
  const { command, output } = await runProgram(interpreter, script, args, onLine);
  const { program, version } = output;
  const measured = batches.map((batch) => {
    const row = (Array.isArray(output.rows) ? output.rows : []).find((row) => row?.batch === batch);
    const tokensPerSecond = Number(row?.tokensPerSecond);
    if (tokensPerSecond > 0) return { batch, tokensPerSecond };
    throw new UsageError(`the peer's result has no tokensPerSecond for ${batch} sequences`);
  });
  return {
    command,
    program: String(program ?? script),
    version: version === undefined ? null : String(version),
    rows: measured,
  };
}

/** @throws UsageError if the program cannot be started, fails, or gives no result */
async function runProgram(
  interpreter: string,
  script: string,
  args: readonly string[],
  onLine: (line: string) => void = () => {},
): Promise<{ command: string; tokensPerSecond: number; output: Record<string, unknown> }> {
  if (!existsSync(script)) throw new UsageError(`there is no peer program ${script}`);
  const command = [interpreter, script, ...args].join(" ");
  const child = spawn(interpreter, [script, ...args], { stdio: ["ignore", "pipe", "pipe"] });
  const lines: string[] = [];
  let result: Record<string, unknown> | undefined;
  const read = async (stream: NodeJS.ReadableStream, isOutput: boolean): Promise<void> => {
    let rest = "";
    for await (const chunk of stream.setEncoding("utf8")) {
      const parts = (rest + chunk).split("\n");
      rest = parts.pop() as string;
      for (const line of parts) take(line, isOutput);
    }
    if (rest !== "") take(rest, isOutput);
  };
  const take = (line: string, isOutput: boolean): void => {
    lines.push(line);
    if (lines.length > 40) lines.shift();
    const object = isOutput ? jsonObject(line) : undefined;
    if (object) result = object;
    else onLine(line);
  };
  const ended = once(child, "close") as Promise<[number | null, NodeJS.Signals | null]>;
  const failed = (what: string): UsageError =>
    new UsageError(
      `the peer ${what}:\n  ${command}\n${lines.map((line) => `  | ${line}`).join("\n")}`,
    );
  try {
    await Promise.all([read(child.stdout, true), read(child.stderr, false), ended]);
  } catch (error) {
    throw new UsageError(`the peer cannot be started: ${(error as Error).message}\n  ${command}`);
  }
  const [code, signal] = await ended;
  if (code !== 0) throw failed(signal ? `was ended by ${signal}` : `failed with exit code ${code}`);
  const tokensPerSecond = Number(result?.tokensPerSecond ?? result?.tok_s);
  if (!result || !(tokensPerSecond > 0)) {
    throw failed("printed no JSON object with tokensPerSecond above 0 as its last line");
  }
  const told = [interpreter, withoutPackagePath(script), ...args].join(" ");
  return { command: told, tokensPerSecond, output: result };
}

/** A program's path as results keep it: that of one of this package begins at the package. */
function withoutPackagePath(script: string): string {
  const root = fileURLToPath(new URL("../..", import.meta.url));
  return script.startsWith(root) ? script.slice(root.length) : script;
}

function fromGibibytes(value: unknown): number | null {
  return typeof value === "number" ? value * 2 ** 30 : null;
}

function jsonObject(line: string): Record<string, unknown> | undefined {
  if (!line.startsWith("{")) return undefined;
  try {
    return JSON.parse(line) as Record<string, unknown>;
  } catch {
    return undefined;
  }
}
