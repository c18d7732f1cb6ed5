import { SingleBar } from "cli-progress";
import { type Command, Option } from "commander";
import { visibleLine } from "../core/visible.js";
import type { DownloadProgress } from "../hub/download-model.js";
import type { ModelParts } from "../hub/model-files.js";
import { isHubReference } from "../hub/reference.js";
import { formatBytes } from "../plan/format.js";
import { printError } from "./terminal.js";

/** The option that lets a command fetch its model. */
export interface DownloadFlag {
  download?: true;
}

/** Adds the option that lets a command fetch a model named `hf:OWNER/NAME`. */
export function addDownloadOption(command: Command): Command {
  return command.addOption(
    new Option("--download", "fetch a model named hf:OWNER/NAME from the Hugging Face Hub"),
  );
}

/**
 * The folder of a model that is named as one of the Hub; any other name as it is.
 * @param download whether to ask the Hub; else the model must be in the cache
 * @throws UsageError if the model is not there, and may not be fetched
 */
export async function hubFolder(
  model: string,
  { download }: DownloadFlag,
  parts: ModelParts = "model",
): Promise<string> {
  if (!isHubReference(model)) return model;
  const { cachedModel, downloadModel } = await import("../hub/download-model.js");
  if (!download) return await cachedModel(model, parts);
  const bar = process.stderr.isTTY ? new Bar(model) : null;
  let total = 0;
  try {
    return await downloadModel(model, {
      parts,
      onProgress: (progress) => {
        total = progress.totalBytes;
        bar?.update(progress);
      },
    });
  } finally {
    bar?.stop();
    if (total > 0 && bar === null) printError(`${visibleLine(model)}: ${formatBytes(total)}\n`);
  }
}

/** A progress bar with the bytes that are there. */
class Bar {
  readonly #bar: SingleBar;

  constructor(name: string) {
    const format = `${visibleLine(name)} {bar} {percentage}%  {bytes}  {file}`;
    const look = { format, barsize: 20, hideCursor: true, gracefulExit: false };
    this.#bar = new SingleBar({ ...look, stream: process.stderr });
    this.#bar.start(1, 0, { bytes: "", file: "" });
  }

  update({ bytes, totalBytes, file }: DownloadProgress): void {
    this.#bar.setTotal(totalBytes);
    this.#bar.update(bytes, { bytes: formatBytes(bytes), file: visibleLine(file) });
  }

  stop(): void {
    this.#bar.stop();
  }
}
