import { randomBytes } from "node:crypto";
import { access, rename, rm } from "node:fs/promises";
import { basename, dirname, resolve } from "node:path";
import {
  checkBoolean,
  checkChoice,
  checkFunction,
  checkOptions,
  checkPath,
} from "../core/check-values.js";
import { UsageError } from "../core/errors.js";
import { Tokenizer } from "../data/tokenizer.js";
import { makeFolder } from "../files/make-folder.js";
import { endTokens } from "../generate/end-tokens.js";
import { type GgufLayout, ggufLayout } from "../model/shapes.js";
import { blockTypes, type GgufType, ggufTypes, toBlocks } from "./gguf-blocks.js";
import { type GgufTensor, type GgufValue, writeGguf } from "./gguf-file.js";
import { ggufTokenizer } from "./gguf-tokenizer.js";
import { readFloats, readFolderModel, refuseBeyondFloat16 } from "./read-model.js";

/** Options of `exportGguf`. */
export interface ExportGgufOptions {
  /** Type of the matrices: `f32`, `f16`, `bf16`, `q8_0` or `q4_0`. Default: "f16". */
  type?: GgufType;
  /** Whether the tokenizer and the chat template go into the file. Default: true. */
  tokenizer?: boolean;
  /** Replaces a file that exists. Default: false. */
  overwrite?: boolean;
  /** Called with notes for the user that are not errors. Default: prints to the console. */
  onNotice?: (message: string) => void;
}

/**
 * Writes a model as one GGUF file for llama.cpp and the programs built on it: weights, settings,
 * tokenizer and chat template. Norms and biases stay float32. In a `q4_0` file the embedding and the
 * output head are `q8_0`. Matrices whose rows are no whole blocks are float16 in both.
 * @param folder a Hugging Face folder
 * @param file   path of the file; it appears as a whole or not at all
 * @throws ArgumentError for a model that llama.cpp's architectures cannot hold, naming the fields
 * @throws TokenizerError for a tokenizer that llama.cpp has no form for
 * @throws CheckpointError for a folder that is damaged
 * @throws UsageError if the file exists
 */
export async function exportGguf(
  folder: string,
  file: string,
  options: ExportGgufOptions = {},
): Promise<void> {
  const op = "exportGguf";
  checkPath(op, "folder", folder);
  checkPath(op, "file", file);
  checkOptions(op, options, ["type", "tokenizer", "overwrite", "onNotice"]);
  const { type = "f16", tokenizer = true, overwrite = false, onNotice = console.warn } = options;
  checkChoice(op, "type", type, ggufTypes);
  checkBoolean(op, "tokenizer", tokenizer);
  checkBoolean(op, "overwrite", overwrite);
  checkFunction(op, "onNotice", onNotice);
  const target = resolve(file);
  if (!overwrite && (await isThere(target))) {
    throw new UsageError(`[export] ${file} exists already: choose another name, or replace it`);
  }
  const { config, tensors: stored } = await readFolderModel(folder);
  const layout = ggufLayout(config);
  const notes = [...layout.notes];
  const metadata = headerOf(layout, basename(resolve(folder)), type);
  if (tokenizer) {
    notes.push(...(await addTokenizer(metadata, folder, config.vocabSize)));
  } else {
    metadata.set("tokenizer.ggml.model", { type: "string", value: "none" });
  }
  const tensors: GgufTensor[] = [];
  for (const { name, values } of layout.extras) {
    const bytes = async () => toBlocks("f32", values);
    tensors.push({ name, shape: [values.length], type: "f32", bytes });
  }
  for (const [name, tensor] of stored) {
    const rule = layout.tensorOf(name);
    if (rule === null) continue;
    const chosen = typeOf(rule.name, tensor.shape, type);
    tensors.push({
      name: rule.name,
      shape: tensor.shape,
      type: chosen,
      bytes: async () => {
        const values = await readFloats(tensor);
        if (chosen === "f16") refuseBeyondFloat16(tensor, values);
        const { interleavedHeads: heads } = rule;
        return toBlocks(chosen, heads ? interleaved(values, tensor.shape, heads) : values);
      },
    });
  }
  await makeFolder(dirname(target));
  const temporary = `${target}.${randomBytes(4).toString("hex")}.tmp`;
  try {
    await writeGguf(temporary, metadata, tensors);
    await rename(temporary, target);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
  for (const note of notes) onNotice(note);
}

function headerOf(layout: GgufLayout, name: string, type: GgufType): Map<string, GgufValue> {
  const { architecture, settings } = layout;
  const metadata = new Map<string, GgufValue>([
    ["general.architecture", { type: "string", value: architecture }],
    ["general.type", { type: "string", value: "model" }],
    ["general.name", { type: "string", value: name }],
    ["general.file_type", { type: "u32", value: blockTypes[type].fileType }],
    ["general.quantization_version", { type: "u32", value: 2 }],
  ]);
  for (const [key, setting] of Object.entries(settings)) {
    metadata.set(`${architecture}.${key}`, setting);
  }
  return metadata;
}

/** Adds the tokenizer and the chat template of a folder. @returns notes for the user */
async function addTokenizer(
  metadata: Map<string, GgufValue>,
  folder: string,
  rows: number,
): Promise<string[]> {
  const tokenizer = await Tokenizer.load(folder);
  tokenizer.assertFits({ vocabSize: rows });
  const { metadata: own, notes } = ggufTokenizer(tokenizer, rows, await endTokens(folder));
  for (const [key, value] of own) metadata.set(key, value);
  const { ChatTemplate } = await import("../generate/chat-template.js");
  const template = await ChatTemplate.find(folder, tokenizer);
  if (template) {
    metadata.set("tokenizer.chat_template", { type: "string", value: template.source });
  }
  return notes;
}

/** The type that a tensor is written in. */
function typeOf(name: string, shape: readonly number[], type: GgufType): GgufType {
  if (shape.length < 2) return "f32";
  const outer = name === "token_embd.weight" || name === "output.weight";
  const wanted = type === "q4_0" && outer ? "q8_0" : type;
  return (shape.at(-1) as number) % blockTypes[wanted].size === 0 ? wanted : "f16";
}

/** The rows of each head, its two halves by turns. */
function interleaved(values: Float32Array, shape: readonly number[], heads: number): Float32Array {
  const rows = shape[0] as number;
  const width = values.length / rows;
  const half = rows / heads / 2;
  const result = new Float32Array(values.length);
  for (let row = 0; row < rows; row++) {
    const head = Math.floor(row / (2 * half));
    const within = row % (2 * half);
    const from = head * 2 * half + (within % 2) * half + Math.floor(within / 2);
    result.set(values.subarray(from * width, (from + 1) * width), row * width);
  }
  return result;
}

async function isThere(path: string): Promise<boolean> {
  return await access(path).then(
    () => true,
    () => false,
  );
}
