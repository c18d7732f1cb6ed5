/** Checks that the disk has room for a checkpoint, before it is written and before a run starts. */
import { statfs } from "node:fs/promises";
import { CheckpointError, UsageError } from "../core/errors.js";
import { guarded } from "./native-io.js";

/** Bytes for names, sizes, hashes and the tokenizer, in addition to the tensors. */
const smallFiles = 4 * 2 ** 20;

/** Number of bytes that this process may still write below a folder. */
export async function freeBytes(folder: string): Promise<number> {
  return await guarded(`asking for the free space of ${folder}`, async () => {
    const { bavail, bsize } = await statfs(folder);
    return bavail * bsize;
  });
}

/**
 * Fails a save that cannot succeed before it writes gigabytes. @throws CheckpointError naming need
 * and free space
 */
export async function expectSpaceToSave(folder: string, bytes: number): Promise<void> {
  const free = await freeBytes(folder);
  if (free >= bytes) return;
  throw new CheckpointError(
    `${folder}: ENOSPC, the checkpoint needs ${readable(bytes)}, ${readable(free)} are free\n` +
      "the disk is full: free space or keep fewer checkpoints",
  );
}

/**
 * Size in bytes of a training checkpoint: weights, moments, and the master copy of bf16 weights (fp8
 * has the same).
 * @param second number of parameters that have a second moment. Default: all
 */
export function checkpointBytes(
  parameters: number,
  precision: "fp8" | "bf16" | "fp32",
  second = parameters,
): number {
  return parameters * (precision === "fp32" ? 4 + 4 : 2 + 4 + 4) + 4 * second + smallFiles;
}

/**
 * Checks the space before a run starts: for the checkpoints that are kept, and for the one being
 * written in addition.
 * @param present number of checkpoints that already exist
 * @throws UsageError naming need and free space
 */
export async function expectSpaceToRun(
  folder: string,
  one: number,
  { keepLast, keepBest = 0, present }: { keepLast: number; keepBest?: number; present: number },
): Promise<void> {
  const count = Math.max(1, keepLast + keepBest + 1 - present);
  const free = await freeBytes(folder);
  if (free >= count * one) return;
  throw new UsageError(
    `${folder}: ${count} checkpoints of ${readable(one)} will be written beside each other and need ` +
      `${readable(count * one)}, ${readable(free)} are free: free space, choose another \`out\`, or keep fewer ` +
      "(checkpoint.keepLast)",
  );
}

function readable(bytes: number): string {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  const power = Math.min(4, Math.max(0, Math.floor(Math.log10(Math.max(1, bytes)) / 3)));
  const value = bytes / 1000 ** power;
  return `${power === 0 ? value : value.toFixed(1)} ${units[power]}`;
}
