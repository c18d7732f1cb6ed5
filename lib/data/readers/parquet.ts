import { type FileHandle, open } from "node:fs/promises";
import type { FileMetaData } from "hyparquet";
import { ArgumentError, DataError } from "../../errors.js";
import type { FilePosition, InputFile } from "./input.js";
import type { FileRecord } from "./jsonl.js";

/** Rows of a group are read in parts of about this size if the file has an index of its pages. */
const partBytes = 2 ** 25;

/**
 * Records of a parquet file, some columns only. One row group is in memory at a time, or a part of one if the file
 * has an index of its pages.
 * @param columns  top-level columns to read
 * @param optional of these, the ones that may be missing
 */
export async function* parquetRecords(
  file: InputFile,
  from: FilePosition,
  columns: readonly string[],
  optional: ReadonlySet<string>,
): AsyncGenerator<FileRecord> {
  // Loaded here: most data sets have no parquet file.
  const [{ parquetMetadataAsync, parquetReadObjects }, { compressors }] = await Promise.all([
    import("hyparquet"),
    import("hyparquet-compressors"),
  ]);
  const handle = await open(file.path, "r").catch((cause: Error) => {
    throw new DataError(`[prepare] cannot read ${file.path}: ${cause.message}`, { cause });
  });
  try {
    const buffer = {
      byteLength: file.bytes,
      slice: (start: number, end = file.bytes) => readSlice(handle, start, end),
    };
    const metadata = await parquetMetadataAsync(buffer);
    const present = presentColumns(metadata, file, columns, optional);
    const rows = Number(metadata.num_rows);
    for (const { rowStart, rowEnd } of rowRanges(metadata, present)) {
      if (rowEnd <= from.record) continue;
      const objects = await parquetReadObjects({
        file: buffer,
        metadata,
        columns: present,
        rowStart,
        rowEnd,
        compressors,
        useOffsetIndex: true,
      });
      for (let row = Math.max(rowStart, from.record); row < rowEnd; row++) {
        const consumed = Math.floor((file.bytes * (row + 1)) / rows);
        // Given away as it is taken, so that a group's memory goes as its rows are done.
        const fields = objects[row - rowStart];
        objects[row - rowStart] = {};
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
  columns: readonly string[],
  optional: ReadonlySet<string>,
): string[] {
  const names = new Set(
    metadata.row_groups[0]?.columns.map((column) => column.meta_data?.path_in_schema[0]) ??
      metadata.schema.slice(1).map((element) => element.name),
  );
  return columns.filter((column) => {
    if (names.has(column)) return true;
    if (optional.has(column)) return false;
    const known = [...names].join(", ");
    throw new DataError(`[prepare] ${file.path}: no column ${column}; it has ${known}`);
  });
}

/** Parts to read one after the other. */
function* rowRanges(
  metadata: FileMetaData,
  columns: readonly string[],
): Generator<{ rowStart: number; rowEnd: number }> {
  let start = 0;
  for (const group of metadata.row_groups) {
    const rows = Number(group.num_rows);
    const chunks = group.columns.filter((column) =>
      columns.includes(column.meta_data?.path_in_schema[0] ?? ""),
    );
    const bytes = chunks.reduce(
      (sum, chunk) => sum + Number(chunk.meta_data?.total_uncompressed_size ?? 0),
      0,
    );
    // Without an index of the pages, every part would read the whole group again.
    const parts = chunks.every((chunk) => chunk.offset_index_offset !== undefined)
      ? Math.min(rows, Math.max(1, Math.ceil(bytes / partBytes)))
      : 1;
    for (let part = 0; part < parts; part++) {
      yield {
        rowStart: start + Math.floor((rows * part) / parts),
        rowEnd: start + Math.floor((rows * (part + 1)) / parts),
      };
    }
    start += rows;
  }
}
