import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { checkChoice, checkOptions, checkString } from "../core/check-values.js";
import { UsageError } from "../core/errors.js";
import { optionName } from "../core/option-names.js";
import { acquireLock } from "../files/lock.js";
import { makeFolder } from "../files/make-folder.js";
import { checkListeners } from "./check-listeners.js";
import { fetchFile, hashOf } from "./fetch-file.js";
import { HubCache, isThere } from "./hub-cache.js";
import { explainHubError } from "./hub-error.js";
import { firstFiles, indexFile, type ModelParts, weightFiles } from "./model-files.js";
import { type HubFile, type HubPackage, hubAccess, importHub } from "./package.js";
import { type HubReference, parseHubReference } from "./reference.js";

/** How far a download is. */
export interface DownloadProgress {
  /** The file under way. */
  file: string;
  /** Bytes that are there, and bytes of all files whose size is known. */
  bytes: number;
  totalBytes: number;
}

/** Options of `downloadModel`. */
export interface DownloadOptions {
  /** Which files: the whole model, or its tokenizer alone. Default: "model". */
  parts?: ModelParts;
  /** Called as bytes arrive. Default: nothing is called. */
  onProgress?: (progress: DownloadProgress) => void;
  /** Stops the download, which a later call continues. Default: nothing stops it. */
  signal?: AbortSignal;
}

const what = "[downloadModel]";

/**
 * Fetches a model of the Hugging Face Hub: its settings, its tokenizer, and its weights in safetensors
 * (no other file). It lies in the cache that the Hub's own tools share (HF_HUB_CACHE, HF_HOME).
 *
 * A call that was interrupted is continued by the next one. Each file is checked against the hash that
 * the Hub gives. HF_ENDPOINT and HF_TOKEN count. Needs the package `@huggingface/hub`.
 * @param model `hf:OWNER/NAME`, or `hf:OWNER/NAME@REVISION` with a branch, a tag or a commit
 * @returns the model's folder
 * @throws UsageError for a missing package, and for a model that does not exist, or is closed to this user
 * @throws CheckpointError if the Hub cannot be reached, or if a file arrives damaged
 */
export async function downloadModel(model: string, options: DownloadOptions = {}): Promise<string> {
  checkString("downloadModel", "model", model);
  checkOptions("downloadModel", options, ["parts", "onProgress", "signal"]);
  const { parts = "model", onProgress, signal } = options;
  checkChoice("downloadModel", "parts", parts, ["model", "tokenizer"]);
  checkListeners("downloadModel", onProgress, signal);
  const reference = parseHubReference(model);
  const hub = await importHub(what);
  try {
    return await download(hub, reference, options);
  } catch (error) {
    options.signal?.throwIfAborted();
    throw explainHubError(error, what, reference);
  }
}

async function download(
  hub: HubPackage,
  reference: HubReference,
  { parts = "model", onProgress, signal }: DownloadOptions,
): Promise<string> {
  const { name, revision, written } = reference;
  const access = hubAccess(what, signal);
  const cache = new HubCache(reference);
  const { sha } = await hub.modelInfo({ ...access, name, revision, additionalFields: ["sha"] });
  const place = { ...access, repo: { type: "model" as const, name }, revision: sha };
  const files = new Map<string, HubFile>();
  for await (const file of hub.listFiles({ ...place, recursive: false })) {
    if (file.type === "file") files.set(file.path, file);
  }
  const paths = [...files.keys()];
  await makeFolder(join(cache.folder, "blobs"));
  const progress: DownloadProgress = { file: "", bytes: 0, totalBytes: 0 };
  const expect = (names: readonly string[]): void => {
    for (const one of names) progress.totalBytes += fileOf(files, one, written).size;
  };
  const fetchOne = async (path: string): Promise<void> => {
    const file = fileOf(files, path, written);
    const target = cache.blob(hashOf(file));
    const onBytes = (bytes: number): void => {
      progress.bytes += bytes;
      onProgress?.({ ...progress, file: path });
    };
    if (await isThere(target)) onBytes(file.size);
    else {
      const blob = await hub.downloadFile({ ...place, path, xet: false });
      if (blob === null) throw new UsageError(`${what} ${written} has no ${path} any more`);
      const read = (offset: number) => bytesOf(offset === 0 ? blob : blob.slice(offset));
      await fetchFile(file, target, read, onBytes, signal);
    }
    await cache.link(sha, path, hashOf(file));
  };
  const lock = await acquireLock(join(cache.folder, ".llamaforge.lock"), `${what} ${written}`);
  try {
    const first = firstFiles(paths, parts, written);
    expect(first);
    for (const path of first) await fetchOne(path);
    if (parts === "model") {
      const list = join(cache.snapshot(sha), indexFile);
      const index = first.includes(indexFile) ? await readFile(list, "utf8") : null;
      const weights = weightFiles(paths, index, written);
      expect(weights);
      for (const path of weights) await fetchOne(path);
    }
    await cache.noteCommit(revision, sha);
  } finally {
    await lock.release();
  }
  return cache.snapshot(sha);
}

function fileOf(files: ReadonlyMap<string, HubFile>, path: string, written: string): HubFile {
  const file = files.get(path);
  if (file !== undefined && hashOf(file) !== "") return file;
  throw new UsageError(`${what} ${written} lacks ${path}, which its weights need`);
}

async function* bytesOf(blob: Blob): AsyncGenerator<Uint8Array> {
  const reader = blob.stream().getReader() as ReadableStreamDefaultReader<Uint8Array>;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    // The rest of the body is of no use.
    await reader.cancel().catch(() => {});
  }
}

/**
 * The folder of a model that has been fetched before, by `downloadModel` or by the Hub's own tools.
 * @throws UsageError if it is not in the cache, or only a part of it
 */
export async function cachedModel(model: string, parts: ModelParts = "model"): Promise<string> {
  const reference = parseHubReference(model);
  const cache = new HubCache(reference);
  const commit = await cache.commitOf(reference.revision);
  const missing = (problem: string) =>
    new UsageError(`${reference.written}: ${problem}; ${optionName("download")} fetches it`);
  if (commit === null) throw missing(`not in the cache ${cache.folder}`);
  const folder = cache.snapshot(commit);
  const lacks = async (name: string) => !(await isThere(join(folder, name)));
  const need = async (names: readonly string[]): Promise<void> => {
    for (const name of names) {
      if (await lacks(name)) throw missing(`${folder} lacks ${name}`);
    }
  };
  if (parts === "tokenizer") {
    await need(["tokenizer.json"]);
    return folder;
  }
  if (await lacks("adapter_config.json")) await need(["config.json"]);
  else await need(["adapter_model.safetensors"]);
  if (!(await lacks("adapter_config.json"))) return folder;
  const index = (await lacks(indexFile)) ? null : await readFile(join(folder, indexFile), "utf8");
  await need(weightFiles(["model.safetensors"], index, reference.written));
  return folder;
}
