import { createHash } from "node:crypto";
import { extname } from "node:path";
import { DataError } from "../../core/errors.js";
import { optionValue } from "../../core/option-names.js";
import { readSmallFile } from "../../files/small-file.js";
import { fileChunks } from "./bytes.js";
import type { FilePosition, InputFile, RawDocument, ReaderOptions, TextStreamer } from "./input.js";
import { languageOfExtension } from "./languages.js";
import { decodeUtf8, invalidUtf8Offset } from "./utf8.js";

/** A file up to this size is one string in memory; a larger one is read twice, piece by piece. */
const wholeFileBytes = 2 ** 24;

/** Reads a file as one document. */
export async function* textDocument(
  file: InputFile,
  from: FilePosition,
  options: ReaderOptions,
): AsyncGenerator<RawDocument> {
  if (from.record > 0) return;
  const text = await read(file, options);
  const fields = {
    path: file.path,
    bytes: typeof text === "string" ? Buffer.byteLength(text) : text.bytes,
    language: languageOfExtension[extname(file.path).toLowerCase()] ?? null,
  };
  yield { record: 0, text, fields, next: { record: 1, byte: 0 }, consumed: file.bytes };
}

async function read(file: InputFile, options: ReaderOptions): Promise<string | TextStreamer> {
  if (file.compression === "none") {
    if (file.bytes > wholeFileBytes) return await streamer(file, options);
    const limits = { limit: wholeFileBytes, mayBeEmpty: true };
    const bytes = await readSmallFile(file.path, limits).catch((cause: Error) => {
      throw new DataError(`[prepare] cannot read ${file.path}: ${cause.message}`, { cause });
    });
    return decodeUtf8(bytes, file.path, options.invalidUtf8);
  }
  const parts: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of fileChunks(file, 0, options.signal)) {
    parts.push(chunk.bytes);
    bytes += chunk.bytes.length;
    if (bytes > wholeFileBytes) return await streamer(file, options);
  }
  return decodeUtf8(Buffer.concat(parts), file.path, options.invalidUtf8);
}

async function streamer(file: InputFile, options: ReaderOptions): Promise<TextStreamer> {
  const hash = createHash("sha256");
  let bytes = 0;
  for await (const text of decoded(file, options)) {
    hash.update(text, "utf8");
    bytes += Buffer.byteLength(text);
  }
  return { bytes, sha256: hash.digest(), chunks: () => decoded(file, options) };
}

/** Decodes a file into pieces that end between characters. */
async function* decoded(
  file: InputFile,
  { invalidUtf8, signal }: ReaderOptions,
): AsyncGenerator<string> {
  const decoder = new TextDecoder("utf-8");
  let carried: Buffer = Buffer.alloc(0);
  let offset = 0;
  for await (const { bytes } of fileChunks(file, 0, signal)) {
    if (invalidUtf8 === "error") {
      const all = carried.length === 0 ? bytes : Buffer.concat([carried, bytes]);
      const bad = invalidUtf8Offset(all);
      // The last three bytes may begin a character that the next chunk completes.
      if (bad >= 0 && bad < all.length - 3) refuse(file, offset + bad, all[bad] as number);
      carried = bad >= 0 ? Buffer.from(all.subarray(bad)) : Buffer.alloc(0);
      offset += all.length - carried.length;
    }
    const text = decoder.decode(bytes, { stream: true });
    if (text !== "") yield text;
  }
  if (carried.length > 0) refuse(file, offset, carried[0] as number);
  const rest = decoder.decode();
  if (rest !== "") yield rest;
}

function refuse(file: InputFile, offset: number, byte: number): never {
  throw new DataError(
    `[prepare] ${file.path}: invalid UTF-8 at byte ${offset} (0x${byte.toString(16).padStart(2, "0")}); ` +
      `convert the file, leave it out, or pass ${optionValue("invalidUtf8", "replace")} to put U+FFFD in its place`,
  );
}
