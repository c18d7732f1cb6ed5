import { DataError } from "../../core/errors.js";
import { optionValue } from "../../core/option-names.js";
import { fileChunks } from "./bytes.js";
import type { FilePosition, InputFile, RawDocument, ReaderOptions } from "./input.js";
import { decodeUtf8 } from "./utf8.js";

/** Largest record. A record is held whole and several times over: as bytes, as text and parsed. */
export const maxRecordBytes = 2 ** 27;

interface Line {
  /** Null if the line is longer than a record may be. */
  bytes: Buffer | null;
  /** Offset of its first byte in the decompressed file. */
  start: number;
  /** Offset after its line break. */
  end: number;
  consumed: number;
}

/**
 * Splits a file into lines of bytes. A line is held whole up to `maxRecordBytes`; longer ones are
 * not kept. The last line needs no line break.
 * @param beyondLong whether to read on behind the beginning of a line that is too long
 */
export async function* jsonLines(
  file: InputFile,
  start: number,
  { beyondLong = true, signal }: { beyondLong?: boolean; signal?: AbortSignal | undefined } = {},
): AsyncGenerator<Line> {
  let rest: Buffer[] = [];
  let restBytes = 0;
  const lineOf = (last: Buffer, end: number): Pick<Line, "bytes" | "start" | "end"> => {
    const length = restBytes + last.length;
    const isLong = length > maxRecordBytes;
    const bytes = isLong ? null : rest.length === 0 ? last : Buffer.concat([...rest, last]);
    rest = [];
    restBytes = 0;
    return { bytes, start: offset, end: offset + length + end };
  };
  let offset = start;
  let consumed = start;
  for await (const chunk of fileChunks(file, start, signal)) {
    consumed = chunk.consumed;
    let from = 0;
    for (;;) {
      const at = chunk.bytes.indexOf(0x0a, from);
      if (at < 0) break;
      const last = chunk.bytes.subarray(from, at);
      const line = lineOf(last, 1);
      yield { ...line, consumed };
      offset = line.end;
      from = at + 1;
    }
    if (from < chunk.bytes.length) {
      restBytes += chunk.bytes.length - from;
      if (restBytes <= maxRecordBytes) rest.push(chunk.bytes.subarray(from));
      else {
        rest = [];
        if (!beyondLong) break;
      }
    }
  }
  if (restBytes > 0) yield { ...lineOf(Buffer.alloc(0), 0), consumed };
}

/** A record of a file of records. */
export interface FileRecord extends Omit<RawDocument, "text"> {
  fields: unknown;
}

/**
 * Reads a file with one JSON object a line. Empty lines are ignored.
 * @param onBad       called for each record that is skipped
 * @param onNonFinite called for each record that holds NaN or an infinity, read as null
 */
export async function* jsonlRecords(
  file: InputFile,
  from: FilePosition,
  options: ReaderOptions,
  onBad: () => void,
  onNonFinite: () => void,
): AsyncGenerator<FileRecord> {
  // A compressed file cannot be entered in the middle: it is read from its start, and finished
  // records are passed over.
  const plain = file.compression === "none";
  let record = plain ? from.record : 0;
  let line = 0;
  const lines = jsonLines(file, plain ? from.byte : 0, {
    beyondLong: options.badRecords === "skip" || from.record > record,
    signal: options.signal,
  });
  for await (const { bytes, start, end, consumed } of lines) {
    line++;
    if (bytes !== null && isBlank(bytes)) continue;
    const number = record++;
    if (number < from.record) continue;
    const next = { record, byte: plain ? end : 0 };
    const where = `${file.path}, record ${number}`;
    try {
      if (bytes === null) {
        throw new DataError(
          `[prepare] ${where}: longer than ${maxRecordBytes} bytes, the most that a record may have; ` +
            `pass ${optionValue("badRecords", "skip")} to leave such records out`,
        );
      }
      const fields = parse(decodeUtf8(bytes, where, options.invalidUtf8), onNonFinite);
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

/**
 * Parses JSON as Python writes it, with `NaN`, `Infinity` and `-Infinity` where JSON has no number.
 * These are searched for only if the text does not parse as JSON.
 * @throws SyntaxError of the original text
 */
function parse(text: string, onNonFinite: () => void): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    const plain = withoutNonFinite(text);
    if (plain === null) throw error;
    let value: unknown;
    try {
      value = JSON.parse(plain);
    } catch {
      throw error;
    }
    onNonFinite();
    return value;
  }
}

/**
 * Replaces Python's non-finite numbers outside of strings with null. Returns null if there are
 * none.
 */
function withoutNonFinite(text: string): string | null {
  if (!/NaN|Infinity/.test(text)) return null;
  let found = false;
  // A string matches as a whole, so that nothing inside it does. An unterminated string is left to
  // the parser.
  const plain = text.replace(
    /"(?:[^"\\]|\\.)*"|(?<![\w.+-])(?:NaN|-?Infinity)(?!\w)/gs,
    (match) => {
      if (match.startsWith('"')) return match;
      found = true;
      return "null";
    },
  );
  return found ? plain : null;
}

function isBlank(bytes: Buffer): boolean {
  if (bytes.length > 64) return false;
  return bytes.every((byte) => byte === 0x20 || byte === 0x09 || byte === 0x0d);
}
