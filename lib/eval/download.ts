import { randomBytes } from "node:crypto";
import { createWriteStream } from "node:fs";
import { rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { DataError } from "../core/errors.js";
import { optionName } from "../core/option-names.js";
import { makeFolder } from "../files/make-folder.js";
import { hubAccess, importHub } from "../hub/package.js";
import { matchSplit } from "./data-files.js";
import type { TaskData } from "./task.js";

/**
 * Downloads the files of a split to `ROOT/NAMESPACE/NAME`. HF_ENDPOINT and HF_TOKEN count, as in
 * the Hub's own tools.
 * @throws UsageError if `@huggingface/hub` is not installed
 * @throws DataError if the Hub does not have the files, or does not answer
 */
export async function downloadSplit(
  root: string,
  data: TaskData,
  taskName: string,
  split: string,
  signal?: AbortSignal,
): Promise<void> {
  const who = `[evaluate] ${optionName("download")}`;
  const hub = await importHub(who);
  const { dataset, revision = "main" } = data;
  const options = {
    ...hubAccess(who, signal),
    repo: { type: "dataset" as const, name: dataset },
    revision,
  };
  const what = `${dataset} (revision ${revision})`;
  const failed = (cause: unknown) =>
    new DataError(`[evaluate] ${taskName}: cannot download ${what}: ${(cause as Error).message}`, {
      cause,
    });
  const paths: string[] = [];
  try {
    for await (const { type, path } of hub.listFiles({ ...options, recursive: true })) {
      if (type === "file") paths.push(path);
    }
  } catch (cause) {
    throw failed(cause);
  }
  const found = matchSplit(paths, data.config, split);
  if (found === null) {
    throw new DataError(`[evaluate] ${taskName}: ${what} has no files of split ${split}`);
  }
  for (const path of found.files) {
    const blob = await hub.downloadFile({ ...options, path }).catch((cause) => {
      throw failed(cause);
    });
    if (blob === null) throw new DataError(`[evaluate] ${taskName}: ${what} has no file ${path}`);
    await store(blob, join(root, dataset, path)).catch((cause) => {
      throw failed(cause);
    });
  }
}

/** Writes a file beside its place and renames it, so that no half file is ever read. */
async function store(blob: Blob, path: string): Promise<void> {
  await makeFolder(dirname(path));
  const temporary = `${path}.${randomBytes(6).toString("hex")}.part`;
  try {
    const body = Readable.fromWeb(blob.stream() as Parameters<typeof Readable.fromWeb>[0]);
    const file = createWriteStream(temporary);
    await pipeline(body, file);
    if (file.bytesWritten !== blob.size) {
      throw new Error(`expected ${blob.size} bytes of ${path}, got ${file.bytesWritten}`);
    }
    await rename(temporary, path);
  } finally {
    await rm(temporary, { force: true });
  }
}
