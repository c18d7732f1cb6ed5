/** The weights of a Hugging Face folder: `model.safetensors`, or shards listed in an index. */
import { access, lstat } from "node:fs/promises";
import { join } from "node:path";
import { boundedList } from "../core/bounded-list.js";
import { CheckpointError } from "../core/errors.js";
import { checkPlainFileName, isRecord, readJson, toJson, writeFileDurably } from "./durable.js";
import type { Digest } from "./native-io.js";
import {
  type ReadOptions,
  readSafetensors,
  type StoredTensors,
  type TensorSource,
  tensorBytes,
  writeSafetensors,
} from "./safetensors.js";

export const weightsFile = "model.safetensors";
export const weightsIndexFile = "model.safetensors.index.json";

// 91,000 tensors of a 671B model make an index of 9 MB.
const indexBytesLimit = 32 * 1024 * 1024;

async function exists(path: string): Promise<boolean> {
  return await access(path).then(
    () => true,
    () => false,
  );
}

/** Weights of older programs: Python pickles, which run code when they are read. */
const pickledFiles = ["pytorch_model.bin", "pytorch_model.bin.index.json"];

/** @throws CheckpointError for a folder whose only weights are pickled */
async function refusePickled(folder: string): Promise<void> {
  for (const file of pickledFiles) {
    if (!(await exists(join(folder, file)))) continue;
    throw new CheckpointError(
      `${folder} has its weights in ${file} alone, a Python pickle: expected ${weightsFile}. ` +
        'Convert it: python3 -c "import sys; from transformers import AutoModelForCausalLM as M; ' +
        "M.from_pretrained(sys.argv[1], dtype='auto').save_pretrained(sys.argv[2])\" FOLDER NEW_FOLDER",
    );
  }
}

/**
 * Opens the weights of a folder. An index and its files must agree exactly: a tensor that is
 * missing from the index, or occurs in two files, is an error.
 */
export async function readWeights(
  folder: string,
  options: ReadOptions = {},
): Promise<StoredTensors> {
  const index = join(folder, weightsIndexFile);
  const single = join(folder, weightsFile);
  if (!(await exists(index))) {
    if (!(await exists(single))) await refusePickled(folder);
    return await readSafetensors(single, options);
  }
  if (await exists(single)) {
    throw new CheckpointError(
      `${folder} has both ${weightsFile} and ${weightsIndexFile}: which one is meant? Remove the other`,
    );
  }
  const fileOf = parseIndex(index, await readJson(index, indexBytesLimit, options));
  await refuseAbsentShards(index, folder, fileOf);
  const merged: StoredTensors = { tensors: new Map(), metadata: new Map() };
  for (const file of new Set(fileOf.values())) {
    const shard = await readSafetensors(join(folder, file), options);
    if (merged.metadata.size === 0) merged.metadata = shard.metadata;
    for (const [name, tensor] of shard.tensors) {
      const mapped = fileOf.get(name);
      if (mapped === undefined) {
        throw new CheckpointError(`${index}: tensor ${name} of ${file} is missing from weight_map`);
      }
      if (mapped !== file) {
        throw new CheckpointError(
          `${index}: tensor ${name} is in ${file}, but mapped to ${mapped}`,
        );
      }
      merged.tensors.set(name, tensor);
    }
  }
  const absent = [...fileOf].filter(([name]) => !merged.tensors.has(name));
  if (absent.length > 0) {
    const list = absent.slice(0, 20).map(([name, file]) => `  ${name} (${file})`);
    throw new CheckpointError(
      `${index}: ${absent.length} tensors of weight_map are not in their files:\n${list.join("\n")}`,
    );
  }
  return merged;
}

/** @throws CheckpointError naming files of an index that are not in its folder */
async function refuseAbsentShards(
  index: string,
  folder: string,
  fileOf: ReadonlyMap<string, string>,
): Promise<void> {
  const absent: string[] = [];
  for (const file of new Set(fileOf.values())) {
    // A link that leads nowhere is there: reading it says why it cannot be read.
    await lstat(join(folder, file)).catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT") absent.push(file);
    });
  }
  if (absent.length === 0) return;
  const list = boundedList(absent.map((file) => `  ${file}: no such file`));
  throw new CheckpointError(
    `${index} names files that are not beside it:\n${list}\nDownload or copy them again`,
  );
}

function parseIndex(path: string, json: unknown): Map<string, string> {
  if (!isRecord(json) || !isRecord(json.weight_map)) {
    throw new CheckpointError(`${path}: expected an object with a "weight_map"`);
  }
  const fileOf = new Map<string, string>();
  for (const [name, file] of Object.entries(json.weight_map)) {
    if (typeof file !== "string") {
      throw new CheckpointError(`${path}: the file of ${JSON.stringify(name)} is not a string`);
    }
    checkPlainFileName(path, file);
    if (!file.endsWith(".safetensors")) {
      throw new CheckpointError(`${path}: ${JSON.stringify(file)} is not a .safetensors file`);
    }
    fileOf.set(name, file);
  }
  if (fileOf.size === 0) throw new CheckpointError(`${path}: weight_map is empty`);
  return fileOf;
}

export interface WriteWeightsOptions {
  /** Largest shard, in bytes of tensor data. A larger single tensor gets a file of its own. */
  shardBytes?: number;
  metadata?: Readonly<Record<string, string>>;
}

/**
 * Writes `model.safetensors`, or shards and their index if the tensors need more than `shardBytes`.
 * @returns the digest of each file written
 */
export async function writeWeights(
  folder: string,
  tensors: readonly TensorSource[],
  { shardBytes = 5e9, metadata = { format: "pt" } }: WriteWeightsOptions = {},
): Promise<Map<string, Digest>> {
  const names = new Set<string>();
  for (const { name } of tensors) {
    if (names.has(name)) throw new CheckpointError(`${folder}: two tensors called ${name}`);
    names.add(name);
  }
  const shards: TensorSource[][] = [[]];
  let filled = 0;
  let total = 0;
  for (const tensor of tensors) {
    const bytes = tensorBytes(tensor);
    if (filled > 0 && filled + bytes > shardBytes) {
      shards.push([]);
      filled = 0;
    }
    shards.at(-1)?.push(tensor);
    filled += bytes;
    total += bytes;
  }
  const digests = new Map<string, Digest>();
  if (shards.length === 1) {
    digests.set(weightsFile, await writeSafetensors(join(folder, weightsFile), tensors, metadata));
    return digests;
  }
  const fileOf: [string, string][] = [];
  for (const [number, shard] of shards.entries()) {
    const part = `${number + 1}`.padStart(5, "0");
    const file = `model-${part}-of-${`${shards.length}`.padStart(5, "0")}.safetensors`;
    digests.set(file, await writeSafetensors(join(folder, file), shard, metadata));
    for (const { name } of shard) fileOf.push([name, file]);
  }
  const index = { metadata: { total_size: total }, weight_map: Object.fromEntries(fileOf) };
  digests.set(
    weightsIndexFile,
    await writeFileDurably(join(folder, weightsIndexFile), toJson(weightsIndexFile, index)),
  );
  return digests;
}
