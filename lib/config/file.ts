/** Reads a run's configuration from its file. */
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { checkPath } from "../core/check-values.js";
import { StorageError, UsageError } from "../core/errors.js";
import {
  answered,
  readSmallFile,
  readSmallFileSync,
  sizeLimits,
  utf8Of,
} from "../files/small-file.js";
import { readYaml } from "../files/yaml.js";
import { isHubReference } from "../hub/reference.js";
import { checkOverrides, parseConfig } from "./load.js";
import type { LoadedConfig } from "./resolve.js";

const reading = { limit: sizeLimits.recipe } as const;

/**
 * Reads a YAML run configuration. Storage that does not answer blocks the process; `readConfig`
 * gives up after a while.
 * @param overrides `path=value` texts that override the file, such as `optimizer.peakLr=1e-3`
 * @throws UsageError if the file cannot be read
 * @throws ConfigError with all problems of file and overrides
 */
export function loadConfig(file: string, overrides: readonly string[] = []): LoadedConfig {
  checkPath("loadConfig", "file", file);
  checkOverrides("loadConfig", overrides);
  let text: string;
  try {
    text = utf8Of(readSmallFileSync(file, reading));
  } catch (cause) {
    throw unreadable(file, cause);
  }
  const from = initialWeights(text, overrides);
  if (from !== undefined && isHubReference(from)) {
    throw new UsageError(
      `${file}: init.from: expected a folder, such as downloadModel("${from}") gives, got ${from}`,
    );
  }
  return parseConfig(text, file, overrides);
}

/**
 * Reads a YAML run configuration like `loadConfig`, but waits for storage no longer than
 * `storageWaitMs`.
 */
export async function readConfig(
  file: string,
  given: readonly string[] = [],
  folderOf: (model: string) => Promise<string> = hubFolder,
): Promise<LoadedConfig> {
  const overrides = [...given];
  let text: string;
  try {
    text = utf8Of(await readSmallFile(file, reading));
  } catch (cause) {
    throw unreadable(file, cause);
  }
  // The model's config.json is later read synchronously, while the options are checked. Its storage
  // therefore has to answer here first.
  let from = initialWeights(text, overrides);
  if (from !== undefined && isHubReference(from)) {
    from = await folderOf(from);
    overrides.push(`init.from=${from}`);
  }
  if (from !== undefined) {
    const place = join(from, "config.json");
    try {
      await answered(place, undefined, () => stat(place));
    } catch (cause) {
      if (cause instanceof StorageError) throw unreadable(place, cause);
    }
  }
  return parseConfig(text, file, overrides);
}

/** The folder of a model of the Hub that has been fetched. */
async function hubFolder(model: string): Promise<string> {
  const { cachedModel } = await import("../hub/download-model.js");
  return await cachedModel(model);
}

/** The folder of `init.from`, if the text or its overrides name one. */
function initialWeights(text: string, overrides: readonly string[]): string | undefined {
  const prefix = "init.from=";
  const override = overrides.findLast((given) => given.startsWith(prefix));
  if (override !== undefined) return override.slice(prefix.length);
  const read = readYaml(text);
  if ("faults" in read) return undefined;
  const from = (read.value as { init?: { from?: unknown } | null } | null)?.init?.from;
  return typeof from === "string" ? from : undefined;
}

function unreadable(file: string, cause: unknown): UsageError {
  return new UsageError(`cannot read the configuration ${file}: ${(cause as Error).message}`, {
    cause,
  });
}
