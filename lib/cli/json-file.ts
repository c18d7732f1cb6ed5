import { open, rm, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import type { Command } from "commander";
import { UsageError } from "../core/errors.js";
import { makeFolder } from "../files/make-folder.js";

export function addJsonOption(command: Command): Command {
  return command.option("--json <file>", "also write the result as JSON");
}

/**
 * Checks, before the work begins, that its result can be written.
 * @throws UsageError if it cannot
 */
export async function prepareJsonFile(file: string | undefined): Promise<void> {
  if (file === undefined) return;
  try {
    await makeFolder(dirname(file));
    if (await isNew(file)) {
      // If the work failed, a remaining empty file could be taken for a result.
      await rm(file);
    } else await (await open(file, "a")).close();
  } catch (cause) {
    throw new UsageError(`--json ${file} cannot be written: ${(cause as Error).message}`, {
      cause,
    });
  }
}

/** Creates a file unless it exists. Only a file created here may be removed again. */
async function isNew(file: string): Promise<boolean> {
  try {
    await (await open(file, "wx")).close();
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  }
}

export async function writeJsonFile(file: string | undefined, value: unknown): Promise<void> {
  if (file !== undefined) await writeFile(file, `${JSON.stringify(value, null, 2)}\n`);
}
