import type { FileHandle } from "node:fs/promises";
import type { FileMetaData, RowGroup } from "hyparquet";
import { boundedList } from "../../core/bounded-list.js";
import { ArgumentError, DataError } from "../../core/errors.js";
import { optionName } from "../../core/option-names.js";
import { openRegular } from "../../files/small-file.js";
import type { FilePosition, InputFile, ReaderOptions } from "./input.js";
import type { FileRecord } from "./jsonl.js";
import { PageLimits } from "./parquet-limits.js";
import { PageIndex } from "./parquet-pages.js";
import { ParquetText } from "./parquet-text.js";

/** Target size of the parts in which a row group is read. */
const partBytes = 2 ** 25;

/** Bytes of a Parquet file's two marks and of its footer's length. */
const smallestFile = 12;

/** Top-level columns to read. */
export interface WantedColumns {
  /** Alternatives for the text, of which at least one must exist. */
  text: readonly string[];
  /** Other columns, which may be missing. */
  others: readonly string[];
}

/**
 * Reads columns of a parquet file as records. One part of a row group is in memory at a time,
 * or the whole group where the pages of its columns cannot be told apart (lists in data pages of
 * version 1).
 * @param onBad called for each row that is skipped because its text is not valid UTF-8
 */
export async function* parquetRecords(
  file: InputFile,
  from: FilePosition,
  columns: WantedColumns | "all",
  options: ReaderOptions,
  onBad: () => void,
): AsyncGenerator<FileRecord> {
  // Imported lazily: most data sets have no parquet file.
  const [{ parquetMetadataAsync, parquetReadObjects, parquetSchema }, { compressors }] =
    await Promise.all([import("hyparquet"), import("hyparquet-compressors")]);
  const handle = await openRegular(file.path).catch((cause: Error) => {
    throw new DataError(`[prepare] cannot read ${file.path}: ${cause.message}`, { cause });
  });
  const limits = new PageLimits();
  try {
    if (file.bytes < smallestFile) {
      throw new DataError(
        `[prepare] cannot read ${file.path}: expected a Parquet file, got ${file.bytes} bytes`,
      );
    }
    const buffer = {
      byteLength: file.bytes,
      slice: (start: number, end = file.bytes) => readSlice(handle, start, end),
    };
    const metadata = await parquetMetadataAsync(buffer);
    const present = presentColumns(metadata, file, columns);
    const rows = Number(metadata.num_rows);
    const index = new PageIndex(buffer, parquetSchema(metadata));
    const text = new ParquetText(options);
    for await (const { rowStart, rowEnd } of rowRanges(metadata, present, index, from.record)) {
      limits.reset();
      const objects = await parquetReadObjects({
        file: index.buffer,
        metadata,
        columns: present,
        rowStart,
        rowEnd,
        compressors: limits.around(compressors),
        parsers: text.parsers,
        useOffsetIndex: true,
      });
      for (let row = Math.max(rowStart, from.record); row < rowEnd; row++) {
        const consumed = Math.floor((file.bytes * (row + 1)) / rows);
        // Each row is released when it is taken, so that a group's memory shrinks as its rows are
        // done.
        const fields = objects[row - rowStart];
        objects[row - rowStart] = {};
        try {
          text.check(fields, `${file.path}, record ${row}`);
        } catch (error) {
          if (options.badRecords === "error") throw error;
          onBad();
          continue;
        }
        yield { record: row, fields, next: { record: row + 1, byte: 0 }, consumed };
      }
    }
  } catch (cause) {
    if (cause instanceof DataError || cause instanceof ArgumentError) throw cause;
    throw new DataError(`[prepare] cannot read ${file.path}: ${(cause as Error).message}`, {
      cause,
    });
  } finally {
    await handle.close();
  }
}

async function readSlice(handle: FileHandle, start: number, end: number): Promise<ArrayBuffer> {
  const bytes = new Uint8Array(end - start);
  let at = 0;
  while (at < bytes.length) {
    const { bytesRead } = await handle.read(bytes, at, bytes.length - at, start + at);
    if (bytesRead === 0) throw new Error(`it ends at byte ${start + at}`);
    at += bytesRead;
  }
  return bytes.buffer;
}

function presentColumns(
  metadata: FileMetaData,
  file: InputFile,
  wanted: WantedColumns | "all",
): string[] {
  const names = new Set(
    metadata.row_groups[0]?.columns.map((column) => column.meta_data?.path_in_schema[0]) ??
      metadata.schema.slice(1).map((element) => element.name),
  );
  if (wanted === "all") return [...names].map(String);
  const { text, others } = wanted;
  if (!text.some((name) => names.has(name))) {
    const known = boundedList([...names].map(String), ", ");
    throw new DataError(
      `[prepare] ${file.path}: no column ${text.join(" or ")}; it has ${known}; name the column as ${optionName("textField")}`,
    );
  }
  return [...new Set([...text, ...others])].filter((name) => names.has(name));
}

/** Ranges of rows to read one after the other, from the range that contains the row `first`. */
async function* rowRanges(
  metadata: FileMetaData,
  columns: readonly string[],
  index: PageIndex,
  first: number,
): AsyncGenerator<{ rowStart: number; rowEnd: number }> {
  let start = 0;
  for (const group of metadata.row_groups) {
    const rows = Number(group.num_rows);
    const parts = start + rows <= first ? 1 : await partsOf(group, columns, index);
    for (let part = 0; part < parts; part++) {
      const rowStart = start + Math.floor((rows * part) / parts);
      const rowEnd = start + Math.floor((rows * (part + 1)) / parts);
      if (rowEnd > first) yield { rowStart, rowEnd };
    }
    start += rows;
  }
}

/** Number of parts in which a row group is read. */
async function partsOf(
  group: RowGroup,
  columns: readonly string[],
  index: PageIndex,
): Promise<number> {
  const chunks = group.columns.filter((column) =>
    columns.includes(column.meta_data?.path_in_schema[0] ?? ""),
  );
  const bytes = chunks.reduce(
    (sum, chunk) => sum + Number(chunk.meta_data?.total_uncompressed_size ?? 0),
    0,
  );
  if (bytes <= partBytes) return 1;
  await index.add(group, chunks);
  // Without a page index, every part would read the whole group again.
  if (chunks.some((chunk) => chunk.offset_index_offset === undefined)) return 1;
  return Math.min(Number(group.num_rows), Math.ceil(bytes / partBytes));
}
