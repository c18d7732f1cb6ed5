import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { readdir, readFile, stat } from "node:fs/promises";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { checkBoolean, checkOptions, checkPath, checkString } from "../core/check-values.js";
import { CheckpointError, UsageError } from "../core/errors.js";
import { checkListeners } from "./check-listeners.js";
import { hashOf } from "./fetch-file.js";
import { explainHubError } from "./hub-error.js";
import { firstFiles, indexFile, weightFiles } from "./model-files.js";
import {
  type HubAccess,
  type HubFile,
  type HubOperation,
  type HubPackage,
  hubAccess,
  importHub,
} from "./package.js";
import { type HubReference, parseHubReference } from "./reference.js";

/** How far an upload is. */
export interface PushProgress {
  file: string;
  state: "hashing" | "uploading";
  /** Share of the file, from 0 to 1. */
  share: number;
}

/** Options of `pushModel`. */
export interface PushOptions {
  /** Whether everybody may read a repository that does not exist yet. Default: false. */
  public?: boolean;
  /** First line of the commit. Default: "Upload with LlamaForge". */
  message?: string;
  /** Called as bytes are hashed and sent. Default: nothing is called. */
  onProgress?: (progress: PushProgress) => void;
  /** Stops the upload. Files that are there already are not sent again. Default: nothing stops it. */
  signal?: AbortSignal;
}

/** Result of `pushModel`. */
export interface PushResult {
  /** The model's page. */
  url: string;
  /** Names of the files that were sent, in one commit; none if the Hub had them all. */
  sent: string[];
  /** Names of weight files of an earlier model that were removed. */
  removed: string[];
}

const what = "[pushModel]";

/**
 * Uploads a model's folder to the Hugging Face Hub in one commit: settings, tokenizer, chat template,
 * weights and README.md, without what only training needs. The repository is made if there is none.
 *
 * Files that the Hub has already are not sent again, so that a call after an interrupted one goes on.
 * Afterwards the Hub's hash of each file is compared with the file's own. HF_ENDPOINT counts, and
 * HF_TOKEN must hold a token that may write. Needs the package `@huggingface/hub`.
 * @param folder a Hugging Face folder, such as a checkpoint
 * @param model  `hf:OWNER/NAME`, or `hf:OWNER/NAME@BRANCH`
 * @throws UsageError for a missing package or token, and for a folder without a model
 * @throws CheckpointError if the Hub cannot be reached, or has other bytes afterwards
 */
export async function pushModel(
  folder: string,
  model: string,
  options: PushOptions = {},
): Promise<PushResult> {
  const op = "pushModel";
  checkPath(op, "folder", folder);
  checkString(op, "model", model);
  checkOptions(op, options, ["public", "message", "onProgress", "signal"]);
  if (options.public !== undefined) checkBoolean(op, "public", options.public);
  if (options.message !== undefined) checkString(op, "message", options.message);
  checkListeners(op, options.onProgress, options.signal);
  const reference = parseHubReference(model);
  const names = await filesOf(folder);
  const hub = await importHub(what);
  const access = hubAccess(what, options.signal);
  if (access.accessToken === undefined) {
    throw new UsageError(
      `${what} ${model} needs a token that may write: set HF_TOKEN to one of https://huggingface.co/settings/tokens`,
    );
  }
  try {
    return await push(hub, access, { reference, folder, names, options });
  } catch (error) {
    options.signal?.throwIfAborted();
    throw explainHubError(error, what, reference);
  }
}

interface Job {
  reference: HubReference;
  folder: string;
  names: readonly string[];
  options: PushOptions;
}

async function push(
  hub: HubPackage,
  access: HubAccess,
  { reference, folder, names, options }: Job,
): Promise<PushResult> {
  const { name, revision: branch } = reference;
  const repo = { type: "model" as const, name };
  const list = async (): Promise<Map<string, HubFile>> => {
    const files = new Map<string, HubFile>();
    const place = { ...access, repo, revision: branch, recursive: false };
    for await (const file of hub.listFiles(place)) files.set(file.path, file);
    return files;
  };
  const present = await list().catch(async (error: { statusCode?: number }) => {
    if (error.statusCode !== 404) throw error;
    await hub.createRepo({ ...access, repo, visibility: options.public ? "public" : "private" });
    return new Map<string, HubFile>();
  });
  const operations: HubOperation[] = [];
  for (const path of names) {
    const file = join(folder, path);
    const known = present.get(path);
    if (known && (await isEqual(file, known))) continue;
    const content = pathToFileURL(resolve(file));
    operations.push({ operation: "addOrUpdate", path, content });
  }
  const stale = [...present.keys()].filter((path) => isWeights(path) && !names.includes(path));
  for (const path of stale) operations.push({ operation: "delete", path });
  const sent = operations
    .filter(({ operation }) => operation === "addOrUpdate")
    .map(({ path }) => path);
  if (operations.length > 0) {
    const { signal, onProgress, message: title = "Upload with LlamaForge" } = options;
    const commit = { ...access, repo, branch, title, operations, useXet: false };
    const events = hub.commitIter({ ...commit, ...(signal && { abortSignal: signal }) });
    for await (const { event, path, progress, state } of events) {
      if (event !== "fileProgress" || state === "error") continue;
      onProgress?.({ file: path ?? "", state: state ?? "uploading", share: progress ?? 0 });
    }
    const after = await list();
    for (const path of sent) {
      const there = after.get(path);
      if (there && (await isEqual(join(folder, path), there))) continue;
      throw new CheckpointError(
        `${what} ${reference.written}: the Hub ${there ? "has other bytes of" : "lacks"} ${path} after the upload`,
      );
    }
  }
  const page = `${access.hubUrl ?? "https://huggingface.co"}/${name}`;
  return { url: branch === "main" ? page : `${page}/tree/${branch}`, sent, removed: stale };
}

/** Names of the files of a model's folder that belong on the Hub. */
async function filesOf(folder: string): Promise<string[]> {
  const paths = await readdir(folder).catch((cause: Error) => {
    throw new UsageError(`${what} cannot read ${folder}: ${cause.message}`, { cause });
  });
  const first = firstFiles(paths, "model", folder);
  const list = join(folder, indexFile);
  const index = paths.includes(indexFile) ? await readFile(list, "utf8") : null;
  const weights = weightFiles(paths, index, folder);
  const lacking = weights.find((name) => !paths.includes(name));
  if (lacking !== undefined) {
    throw new CheckpointError(`${what} ${folder} lacks ${lacking}, which ${indexFile} names`);
  }
  return [...first, ...weights, ...(paths.includes("README.md") ? ["README.md"] : [])];
}

function isWeights(path: string): boolean {
  return /^model(-\d+-of-\d+)?\.safetensors(\.index\.json)?$/.test(path);
}

/** Whether a file has the bytes that the Hub has. */
async function isEqual(file: string, known: HubFile): Promise<boolean> {
  const { size } = await stat(file);
  if (size !== (known.lfs?.size ?? known.size)) return false;
  const hash = known.lfs ? createHash("sha256") : createHash("sha1").update(`blob ${size}\0`);
  for await (const chunk of createReadStream(file)) hash.update(chunk as Uint8Array);
  return hash.digest("hex") === hashOf(known);
}
