import { constants } from "node:buffer";
import { DataError } from "../../errors.js";
import { optionValue } from "../../option-names.js";
import { decodeUtf8 } from "../utf8.js";
import { fileChunks } from "./bytes.js";
import type { FilePosition, InputFile, RawDocument, ReadOptions } from "./input.js";

interface Line {
  bytes: Buffer;
  /** Offset of its first byte in the decompressed file. */
  start: number;
  /** Offset behind its line break. */
  end: number;
  consumed: number;
}

/** Lines of bytes. A line is held whole; nothing else is. The last one needs no line break. */
async function* lines(file: InputFile, start: number): AsyncGenerator<Line> {
  let rest: Buffer[] = [];
  let restBytes = 0;
  let offset = start;
  let consumed = start;
  for await (const chunk of fileChunks(file, start)) {
    consumed = chunk.consumed;
    let from = 0;
    for (;;) {
      const at = chunk.bytes.indexOf(0x0a, from);
      if (at < 0) break;
      const last = chunk.bytes.subarray(from, at);
      const bytes = rest.length === 0 ? last : Buffer.concat([...rest, last]);
      rest = [];
      restBytes = 0;
      const end = offset + bytes.length + 1;
      yield { bytes, start: offset, end, consumed };
      offset = end;
      from = at + 1;
    }
    if (from < chunk.bytes.length) {
      rest.push(chunk.bytes.subarray(from));
      restBytes += chunk.bytes.length - from;
      if (restBytes > constants.MAX_STRING_LENGTH) {
        throw new DataError(
          `[prepare] ${file.path}: the line at byte ${offset} is longer than ${constants.MAX_STRING_LENGTH} bytes`,
        );
      }
    }
  }
  if (rest.length > 0) {
    const bytes = Buffer.concat(rest);
    yield { bytes, start: offset, end: offset + bytes.length, consumed };
  }
}

/** A record of a file of records. */
export interface FileRecord extends Omit<RawDocument, "text"> {
  fields: unknown;
}

/** Records of a file with one JSON object a line. Empty lines are none. */
export async function* jsonlRecords(
  file: InputFile,
  from: FilePosition,
  options: ReadOptions,
  onBad: () => void,
): AsyncGenerator<FileRecord> {
  // A compressed file is read again from its start, and the records that are done are passed over.
  const plain = file.compression === "none";
  let record = plain ? from.record : 0;
  let line = 0;
  for await (const { bytes, start, end, consumed } of lines(file, plain ? from.byte : 0)) {
    line++;
    if (isBlank(bytes)) continue;
    const number = record++;
    if (number < from.record) continue;
    const next = { record, byte: plain ? end : 0 };
    const where = `${file.path}, record ${number}`;
    try {
      const fields: unknown = JSON.parse(decodeUtf8(bytes, where, options.invalidUtf8));
      if (typeof fields !== "object" || fields === null || Array.isArray(fields)) {
        throw new DataError(`[prepare] ${where}: expected a JSON object on each line`);
      }
      yield { record: number, fields, next, consumed };
    } catch (cause) {
      if (options.badRecords === "skip") {
        onBad();
        continue;
      }
      if (cause instanceof DataError) throw cause;
      const place = plain ? `at byte ${start}` : `line ${line}`;
      throw new DataError(
        `[prepare] ${where} (${place}): not JSON: ${(cause as Error).message}; ` +
          `correct it, or pass ${optionValue("badRecords", "skip")} to leave such records out`,
        { cause },
      );
    }
  }
}

function isBlank(bytes: Buffer): boolean {
  if (bytes.length > 64) return false;
  return bytes.every((byte) => byte === 0x20 || byte === 0x09 || byte === 0x0d);
}
