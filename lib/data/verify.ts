import { createHash } from "node:crypto";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { boundedList } from "../core/bounded-list.js";
import { checkFunction, checkPath } from "../core/check-values.js";
import { DataError } from "../core/errors.js";
import { openRegular } from "../files/small-file.js";
import {
  chatTemplateFile,
  type DatasetFile,
  datasetFileName,
  indexFile,
  maskFile,
  readDatasetFile,
  splitNames,
} from "./dataset-file.js";
import { checkShard } from "./shards.js";
import { companionNames } from "./tokenizer-files.js";

/**
 * Compares the SHA-256 of every file of a data set with its dataset.json.
 * @param onNotice called with files that no hash covers, and with files that do not belong to the
 *   data set
 * @throws DataError naming the first file that differs
 * @throws ArgumentError for arguments of the wrong type
 */
export async function verifyDataset(
  folder: string,
  onNotice: (message: string) => void = () => {},
): Promise<DatasetFile> {
  checkPath("verifyDataset", "folder", folder);
  checkFunction("verifyDataset", "onNotice", onNotice);
  const dataset = await readDatasetFile(folder);
  const parts = new Set<string>([datasetFileName, ...dataset.tokenizer.files, "tokenizer.json"]);
  for (const split of splitNames) {
    for (const shard of dataset.splits[split].shards) {
      await checkShard(folder, shard, dataset, true);
      await checkHash(join(folder, shard.file), shard.sha256);
      await checkHash(join(folder, indexFile(shard.file)), shard.indexSha256);
      parts.add(shard.file).add(indexFile(shard.file));
      if (shard.maskSha256 === undefined) continue;
      await checkHash(join(folder, maskFile(shard.file)), shard.maskSha256);
      parts.add(maskFile(shard.file));
    }
  }
  const template = (dataset.chats ?? dataset.pairs)?.templateSha256 ?? null;
  if (template !== null) {
    await checkHash(join(folder, chatTemplateFile), template);
    parts.add(chatTemplateFile);
  }
  const uncovered = await checkTokenizerFiles(folder, dataset);
  for (const name of uncovered) {
    onNotice(`${join(folder, name)} is not covered: the version that made it wrote no hash of it`);
  }
  const others = (await readdir(folder)).filter((name) => !parts.has(name));
  if (others.length > 0) {
    onNotice(
      `no part of ${folder}: ${boundedList(
        others.map((name) => JSON.stringify(name)),
        ", ",
      )}`,
    );
  }
  return dataset;
}

/**
 * Compares the SHA-256 of a data set's tokenizer files with its dataset.json.
 * @returns names of the files without a hash, in data sets of versions that only hashed
 *   tokenizer.json
 * @throws DataError naming a file that differs, is missing, or would be used although dataset.json
 *   does not list it
 */
export async function checkTokenizerFiles(
  folder: string,
  { tokenizer: { sha256, files, hashes = {} } }: DatasetFile,
): Promise<string[]> {
  const uncovered: string[] = [];
  await checkHash(join(folder, "tokenizer.json"), sha256);
  for (const name of files) {
    if (name === "tokenizer.json") continue;
    const expected = hashes[name];
    if (expected === undefined) uncovered.push(name);
    else await checkHash(join(folder, name), expected);
  }
  const present = new Set(await readdir(folder));
  for (const name of companionNames) {
    if (!present.has(name) || files.includes(name)) continue;
    throw new DataError(
      `[data] ${join(folder, name)} is not listed in ${datasetFileName}, but would be used: ` +
        "it has come there since the data set was made; remove it",
    );
  }
  return uncovered;
}

async function checkHash(path: string, expected: string): Promise<void> {
  const digest = createHash("sha256");
  try {
    const handle = await openRegular(path);
    for await (const chunk of handle.createReadStream()) digest.update(chunk as Buffer);
  } catch (cause) {
    throw new DataError(`[data] cannot read ${path}: ${(cause as Error).message}`, { cause });
  }
  const actual = digest.digest("hex");
  if (actual !== expected) throw changedFile(path, actual, expected);
}

/** The error for a file whose content differs from the data set's record of it. */
export function changedFile(path: string, actual: string, expected: string): DataError {
  return new DataError(`[data] ${path} has changed: its SHA-256 is ${actual}, not ${expected}`);
}
