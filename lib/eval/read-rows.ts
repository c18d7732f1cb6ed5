import { stat } from "node:fs/promises";
import { DataError } from "../core/errors.js";
import { formatOf } from "../prepare/readers/find.js";
import type { InputFile } from "../prepare/readers/input.js";
import { jsonLines } from "../prepare/readers/jsonl.js";
import { parquetRecords } from "../prepare/readers/parquet.js";
import { textDocument } from "../prepare/readers/text-file.js";
import { decodeUtf8 } from "../prepare/readers/utf8.js";
import type { Row } from "./task.js";

/** A row and the place where it stands: `line 3`, `row 2`. */
export interface PlacedRow {
  row: Row;
  place: string;
}

const strict = { invalidUtf8: "error", badRecords: "error" } as const;
const start = { record: 0, byte: 0 };

/**
 * Reads all rows of a JSON Lines or Parquet file, with all of their columns.
 * @throws DataError naming file and row for anything but rows
 */
export async function readRows(path: string): Promise<PlacedRow[]> {
  const file = await inputFile(path);
  if (file.format === "text") throw new DataError(`[evaluate] ${path}: expected rows, got a text`);
  return asEvaluation(file.format === "jsonl" ? jsonlRows(file) : parquetRows(file));
}

/** A text file as one row with the column `text`; rows of other files as `readRows`. */
export async function readTexts(path: string): Promise<PlacedRow[]> {
  const file = await inputFile(path, "text");
  if (file.format !== "text") return readRows(path);
  return asEvaluation(textRows(file));
}

async function inputFile(path: string, otherwise?: "text"): Promise<InputFile> {
  const status = await stat(path).catch((cause: Error) => {
    throw new DataError(`[evaluate] cannot read ${path}: ${cause.message}`, { cause });
  });
  const format = formatOf(path) ?? (otherwise && { format: otherwise, compression: "none" });
  if (!format) throw new DataError(`[evaluate] ${path}: expected .jsonl, .json or .parquet`);
  return { path, bytes: status.size, mtimeMs: status.mtimeMs, ...format };
}

async function* jsonlRows(file: InputFile): AsyncGenerator<PlacedRow> {
  let line = 0;
  for await (const { bytes } of jsonLines(file, 0)) {
    const where = `${file.path}, line ${++line}`;
    if (bytes === null) throw new DataError(`[evaluate] ${where}: too long for a row`);
    const text = decodeUtf8(bytes, where, "error");
    if (text.trim() === "") continue;
    let row: unknown;
    try {
      row = JSON.parse(text);
    } catch (cause) {
      const { message } = cause as Error;
      throw new DataError(`[evaluate] ${where}: expected a JSON object on each line: ${message}`, {
        cause,
      });
    }
    if (typeof row !== "object" || row === null || Array.isArray(row)) {
      throw new DataError(`[evaluate] ${where}: expected a JSON object on each line`);
    }
    yield { row: row as Row, place: `line ${line}` };
  }
}

async function* parquetRows(file: InputFile): AsyncGenerator<PlacedRow> {
  for await (const { record, fields } of parquetRecords(file, start, "all", strict, () => {})) {
    yield { row: plain(fields) as Row, place: `row ${record}` };
  }
}

async function* textRows(file: InputFile): AsyncGenerator<PlacedRow> {
  for await (const { text } of textDocument(file, start, strict)) {
    if (typeof text === "string") {
      yield { row: { text }, place: "the text" };
      continue;
    }
    const parts: string[] = [];
    for await (const part of text.chunks()) parts.push(part);
    yield { row: { text: parts.join("") }, place: "the text" };
  }
}

/** A Parquet value as JSON has it: 64-bit integers become numbers where they fit. */
function plain(value: unknown): unknown {
  if (typeof value === "bigint") {
    const number = Number(value);
    return Number.isSafeInteger(number) ? number : value;
  }
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value !== "object" || value === null) return value;
  const isRecord = Object.getPrototypeOf(value) === Object.prototype;
  if (!isRecord) return value;
  return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, plain(inner)]));
}

/** Collects rows. Errors of the readers, which serve preparations too, become ours. */
async function asEvaluation(rows: AsyncIterable<PlacedRow>): Promise<PlacedRow[]> {
  const all: PlacedRow[] = [];
  try {
    for await (const row of rows) all.push(row);
  } catch (cause) {
    if (!(cause instanceof DataError)) throw cause;
    const message = cause.message
      .replace(/^\[prepare\]/, "[evaluate]")
      .replace(/; convert the file, leave it out, or pass .*$/, "; convert the file");
    throw new DataError(message, { cause });
  }
  return all;
}
