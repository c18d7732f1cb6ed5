import { open, rm, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import type { Command } from "commander";
import { UsageError } from "../core/errors.js";
import { makeFolder } from "../files/make-folder.js";

export function addJsonOption(command: Command): Command {
  return command.option("--json <file>", "also write the result as JSON");
}

/**
 * Makes sure, before the work begins, that its result can be written.
 * @throws UsageError if it cannot
 */
export async function prepareJsonFile(file: string | undefined): Promise<void> {
  if (file === undefined) return;
  try {
    await makeFolder(dirname(file));
    if (await isNew(file)) {
      // An empty file would be taken for a result if the work fails.
      await rm(file);
    } else await (await open(file, "a")).close();
  } catch (cause) {
    throw new UsageError(`--json ${file} cannot be written: ${(cause as Error).message}`, {
      cause,
    });
  }
}

/** Makes a file, unless something of its name is there; only what this made may be removed again. */
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
