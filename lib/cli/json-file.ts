import { existsSync } from "node:fs";
import { open, rm, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import type { Command } from "commander";
import { UsageError } from "../errors.js";
import { makeFolder } from "../make-folder.js";

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
    const existed = existsSync(file);
    await (await open(file, "a")).close();
    // An empty file would be taken for a result if the work fails.
    if (!existed) await rm(file);
  } catch (cause) {
    throw new UsageError(`--json ${file} cannot be written: ${(cause as Error).message}`, {
      cause,
    });
  }
}

export async function writeJsonFile(file: string | undefined, value: unknown): Promise<void> {
  if (file !== undefined) await writeFile(file, `${JSON.stringify(value, null, 2)}\n`);
}
