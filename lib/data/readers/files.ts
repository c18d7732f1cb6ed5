import { readFile } from "node:fs/promises";
import { DataError } from "../../errors.js";
import { decodeUtf8, type InvalidUtf8 } from "../utf8.js";
import type { FoundFile } from "./folder.js";
import type { Document, Reader } from "./index.js";

/** A file is one string in memory, and V8's strings end at 2^29 units. */
const maxFileBytes = 2 ** 28;

/** Reads plain files, each as one document. */
export function fileReader(files: readonly FoundFile[], invalidUtf8: InvalidUtf8): Reader {
  let emptyFiles = 0;
  async function* documents(): AsyncGenerator<Document> {
    emptyFiles = 0;
    for (const file of files) {
      const text = await readText(file, invalidUtf8);
      if (text === "") emptyFiles++;
      else yield { text, bytes: Buffer.byteLength(text), origin: file.path };
    }
  }
  return {
    totalBytes: files.reduce((total, file) => total + file.bytes, 0),
    get emptyFiles() {
      return emptyFiles;
    },
    documents,
  };
}

async function readText(file: FoundFile, invalidUtf8: InvalidUtf8): Promise<string> {
  if (file.bytes > maxFileBytes) {
    throw new DataError(
      `[prepare] ${file.path}: ${file.bytes} bytes is too long for one document (limit ${maxFileBytes}): split it`,
    );
  }
  let bytes: Buffer;
  try {
    bytes = await readFile(file.path);
  } catch (cause) {
    throw new DataError(`[prepare] cannot read ${file.path}: ${(cause as Error).message}`, {
      cause,
    });
  }
  return decodeUtf8(bytes, file.path, invalidUtf8);
}
