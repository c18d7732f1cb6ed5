import { access } from "node:fs/promises";
import { join } from "node:path";
import { type Command, Option } from "commander";
import { CheckpointError, NonFiniteError, UsageError } from "../core/errors.js";
import { adapterAlone, adapterFiles } from "../model/lora-config.js";
import { addDownloadOption, type DownloadFlag, hubFolder } from "./hub-model.js";
import { printError } from "./terminal.js";

/** Where a model comes from, and where it runs. */
export interface PlaceOptions extends DownloadFlag {
  device: string;
  precision: "fp32" | "bf16";
}

/** Adds the options that say where a model comes from, and where it runs. */
export function addPlaceOptions(command: Command): Command {
  return addDownloadOption(command)
    .option("--device <device>", "cpu, cuda or cuda:N", "cpu")
    .addOption(
      new Option("--precision <p>", "of weights and activations")
        .choices(["fp32", "bf16"])
        .default("fp32"),
    );
}

/** The dtype of weights and activations that the user chose. */
export function dtypeOf({ precision }: PlaceOptions): "f32" | "bf16" {
  return precision === "bf16" ? "bf16" : "f32";
}

/**
 * The given folder if it holds a model; for a run's folder, its newest checkpoint; for a model of the
 * Hub, its folder in the cache.
 * @throws UsageError if it is none of these
 */
export async function modelFolder(model: string, flags: DownloadFlag = {}): Promise<string> {
  const folder = await hubFolder(model, flags);
  const has = (name: string) =>
    access(join(folder, name)).then(
      () => true,
      () => false,
    );
  if (await has("config.json")) return folder;
  if (await has(adapterFiles.config)) throw new UsageError(adapterAlone(folder));
  const { openNewest } = await import("../checkpoint/load.js");
  const newest = await openNewest(folder, {
    hashes: false,
    onWarning: (message) => printError(`warning: ${message}\n`),
  });
  if (newest === null) {
    throw new UsageError(
      `${folder}: expected a folder with config.json, or a run with checkpoints in it`,
    );
  }
  return newest.path;
}

/** Reports non-finite weights as a fault of the files that they came from. */
export function ofCheckpoint(error: unknown, place: string): unknown {
  if (!(error instanceof NonFiniteError) || error.tensors.length === 0) return error;
  return new CheckpointError(`${place}: ${error.message}`, { cause: error });
}
