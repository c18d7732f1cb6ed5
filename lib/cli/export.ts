import { basename, resolve } from "node:path";
import { type Command, Option } from "commander";
import { UsageError } from "../core/errors.js";
import { type GgufType, ggufTypes } from "../export/gguf-blocks.js";
import { addDownloadOption, type DownloadFlag } from "./hub-model.js";
import { modelFolder } from "./model-folder.js";
import { print, printError } from "./terminal.js";

interface ExportFlags extends DownloadFlag {
  to: "gguf" | "hf";
  out?: string;
  type?: GgufType;
  dtype?: "float32" | "float16" | "bfloat16";
  tokenizer: boolean;
  overwrite?: boolean;
}

export function addExport(program: Command): void {
  const command = program
    .command("export")
    .description(
      "a model as a GGUF file for llama.cpp, or as a Hugging Face folder of another dtype",
    )
    .argument("<folder>", "a Hugging Face model, a checkpoint, or a run, whose newest is taken")
    .addOption(
      new Option("--to <form>", "gguf: one file for llama.cpp, Ollama and others; hf: a folder")
        .choices(["gguf", "hf"])
        .makeOptionMandatory(),
    )
    .option(
      "--out <path>",
      "file or folder to make (default: NAME-TYPE.gguf here; with hf, needed)",
    )
    .addOption(
      new Option("--type <type>", "of a GGUF file's matrices (default: f16)").choices(ggufTypes),
    )
    .addOption(
      new Option("--dtype <dtype>", "of a folder's weights (default: bfloat16)").choices([
        "float32",
        "float16",
        "bfloat16",
      ]),
    )
    .option("--no-tokenizer", "leave the tokenizer out of a GGUF file")
    .option("--overwrite", "replace a GGUF file that exists");
  addDownloadOption(command).action(async (folder: string, flags: ExportFlags) => {
    const path = await modelFolder(folder, flags);
    const made =
      flags.to === "gguf" ? await toGguf(path, folder, flags) : await toFolder(path, flags);
    print(`${made}\n`);
  });
}

async function toGguf(path: string, named: string, flags: ExportFlags): Promise<string> {
  if (flags.dtype !== undefined)
    throw new UsageError("--dtype is for --to hf; a GGUF file has --type");
  const { type = "f16", tokenizer, overwrite = false } = flags;
  const out = flags.out ?? `${basename(resolve(named))}-${type}.gguf`;
  const { exportGguf } = await import("../export/gguf.js");
  const onNotice = (message: string) => printError(`warning: ${message}\n`);
  await exportGguf(path, out, { type, tokenizer, overwrite, onNotice });
  return out;
}

async function toFolder(path: string, flags: ExportFlags): Promise<string> {
  const { out, dtype, type, tokenizer, overwrite } = flags;
  if (type !== undefined) throw new UsageError("--type is for --to gguf; a folder has --dtype");
  if (!tokenizer || overwrite) {
    throw new UsageError("--no-tokenizer and --overwrite are for --to gguf");
  }
  if (out === undefined) throw new UsageError("--to hf needs --out, the folder to make");
  const { exportHuggingFace } = await import("../export/hugging-face.js");
  await exportHuggingFace(path, out, dtype ? { dtype } : {});
  return out;
}
