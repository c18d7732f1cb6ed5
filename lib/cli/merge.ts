import { access } from "node:fs/promises";
import { join } from "node:path";
import { type Command, Option } from "commander";
import { UsageError } from "../core/errors.js";
import { addDownloadOption, type DownloadFlag, hubFolder } from "./hub-model.js";
import { print, printError } from "./terminal.js";

interface MergeFlags extends DownloadFlag {
  out: string;
  base?: string;
  dtype?: "float32" | "float16" | "bfloat16";
}

export function addMerge(program: Command): void {
  const command = program
    .command("merge")
    .description("adds a low-rank adapter to its model, as a Hugging Face folder")
    .argument("<adapter>", "folder of an adapter, or a run of one, whose newest is taken")
    .requiredOption("--out <folder>", "folder to make")
    .option("--base <folder>", "the adapter's model (default: the one that it names)")
    .addOption(
      new Option("--dtype <dtype>", "of the weights (default: bfloat16)").choices([
        "float32",
        "float16",
        "bfloat16",
      ]),
    );
  addDownloadOption(command).action(async (folder: string, flags: MergeFlags) => {
    const { out, dtype } = flags;
    const { mergeAdapter } = await import("../export/merge.js");
    const adapter = await adapterFolder(await hubFolder(folder, flags));
    const base = flags.base && (await hubFolder(flags.base, flags));
    await mergeAdapter(adapter, out, { ...(base && { base }), ...(dtype && { dtype }) });
    print(`${out}\n`);
  });
}

/** The given folder if it holds an adapter; for a run's folder, its newest checkpoint. */
async function adapterFolder(folder: string): Promise<string> {
  const isAdapter = await access(join(folder, "adapter_config.json")).then(
    () => true,
    () => false,
  );
  if (isAdapter) return folder;
  const { openNewest } = await import("../checkpoint/load.js");
  const newest = await openNewest(folder, {
    hashes: false,
    onWarning: (message) => printError(`warning: ${message}\n`),
  });
  if (newest !== null) return newest.path;
  throw new UsageError(
    `${folder}: expected a folder with adapter_config.json, or a run with checkpoints in it`,
  );
}
