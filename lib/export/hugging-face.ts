import { mkdir, readdir, rename } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { readSmallFile, toJson, writeFileDurably } from "../checkpoint/durable.js";
import type { StoredTensor, TensorSource } from "../checkpoint/safetensors.js";
import { writeWeights } from "../checkpoint/weights.js";
import { checkChoice, checkInteger, checkOptions, checkPath } from "../core/check-values.js";
import { UsageError } from "../core/errors.js";
import { makeFolder } from "../files/make-folder.js";
import { makeOwnFolder, refuseForeign, removeOwnFolder } from "../files/own-folder.js";
import { toBlocks } from "./gguf-blocks.js";
import {
  type FolderModel,
  mergedKey,
  readFloats,
  readFolderModel,
  refuseBeyondFloat16,
} from "./read-model.js";

export const exportDtypes = ["float32", "float16", "bfloat16"] as const;
export type ExportDtype = (typeof exportDtypes)[number];

const forms = {
  float32: { file: "F32", blocks: "f32" },
  float16: { file: "F16", blocks: "f16" },
  bfloat16: { file: "BF16", blocks: "bf16" },
} as const;

/** Files besides the weights that make a model's folder usable. */
const companions = [
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "chat_template.jinja",
  "generation_config.json",
];
const companionBytesLimit = 2 ** 28;

/** Options of `exportHuggingFace`. */
export interface ExportHuggingFaceOptions {
  /** Type of all weights. Default: "bfloat16". */
  dtype?: ExportDtype;
  /** Largest size of a weight file in bytes; a larger tensor gets a file of its own. Default: 5e9. */
  shardBytes?: number;
}

/**
 * Writes a model's Hugging Face folder again with weights of another type, without the files that
 * only training needs. The folder appears as a whole or not at all.
 * @param folder a Hugging Face folder, such as a checkpoint
 * @param out    the new folder
 * @throws CheckpointError for a folder that is damaged
 * @throws UsageError if the new folder is not empty
 */
export async function exportHuggingFace(
  folder: string,
  out: string,
  options: ExportHuggingFaceOptions = {},
): Promise<void> {
  const op = "exportHuggingFace";
  checkPath(op, "folder", folder);
  checkPath(op, "out", out);
  checkOptions(op, options, ["dtype", "shardBytes"]);
  const { dtype = "bfloat16", shardBytes } = options;
  checkChoice(op, "dtype", dtype, exportDtypes);
  if (shardBytes !== undefined) checkInteger(op, "shardBytes", shardBytes, { min: 1 });
  await writeFolder(await readFolderModel(folder), out, {
    dtype,
    companionsOf: [folder],
    valuesOf: readFloats,
    ...(shardBytes !== undefined && { shardBytes }),
  });
}

export interface FolderOptions {
  dtype: ExportDtype;
  shardBytes?: number;
  /** Folders with the tokenizer and the like. The first that has a file counts. */
  companionsOf: readonly string[];
  /** The numbers that are written for a tensor. */
  valuesOf: (tensor: StoredTensor) => Promise<Float32Array>;
}

/** Writes a folder, one tensor in memory at a time. @throws UsageError if it is not empty */
export async function writeFolder(
  { json, merged, tensors }: FolderModel,
  out: string,
  { dtype, shardBytes, companionsOf, valuesOf }: FolderOptions,
): Promise<void> {
  const target = resolve(out);
  if ((await namesIn(target)).length > 0) {
    throw new UsageError(`[export] ${out} exists already: choose another folder or remove it`);
  }
  const { torch_dtype: _, dtype: __, ...config } = json;
  const { file, blocks } = forms[dtype];
  const sources = [...tensors.values()].map(
    (tensor): TensorSource => ({
      name: tensor.name,
      dtype: file,
      shape: tensor.shape,
      bytes: async () => {
        const values = await valuesOf(tensor);
        if (dtype === "float16") refuseBeyondFloat16(tensor, values);
        return toBlocks(blocks, values);
      },
    }),
  );
  const temporary = `${target}.tmp`;
  const written = join(temporary, "model");
  await refuseForeign(temporary, "[export]");
  try {
    await removeOwnFolder(temporary, "[export]");
    await makeFolder(dirname(target));
    await makeOwnFolder(temporary, "[export]");
    await mkdir(written);
    const name = "config.json";
    await writeFileDurably(join(written, name), toJson(name, { ...config, torch_dtype: dtype }));
    for (const [companion, path] of await findCompanions(companionsOf)) {
      const bytes = await readSmallFile(path, companionBytesLimit, { followLinks: true });
      await writeFileDurably(join(written, companion), bytes);
    }
    const metadata = { format: "pt", ...(merged.length > 0 && { [mergedKey]: merged.join(" ") }) };
    await writeWeights(written, sources, { metadata, ...(shardBytes && { shardBytes }) });
    await rename(written, target);
    await removeOwnFolder(temporary, "[export]");
  } catch (error) {
    await removeOwnFolder(temporary, "[export]").catch(() => {});
    throw error;
  }
}

/** Paths of the files that go with the weights, by their names. */
async function findCompanions(folders: readonly string[]): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  for (const folder of folders) {
    const present = await namesIn(folder);
    for (const name of companions) {
      if (present.includes(name) && !found.has(name)) found.set(name, join(folder, name));
    }
  }
  return found;
}

/** Names in a folder; none if there is no folder. */
async function namesIn(folder: string): Promise<string[]> {
  return await readdir(folder).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return [];
    throw new UsageError(`[export] cannot use ${folder}: ${error.message}`, { cause: error });
  });
}
