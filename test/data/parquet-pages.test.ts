import { readFile } from "node:fs/promises";
import { join } from "node:path";
import {
  type ColumnChunk,
  parquetMetadataAsync,
  parquetReadObjects,
  parquetSchema,
  readOffsetIndex,
} from "hyparquet";
import { describe, expect, it } from "vitest";
import { PageIndex } from "../../lib/prepare/readers/parquet-pages.js";
import { fixtures } from "./support.js";

/** A file of pyarrow (make.py), with its index and without. */
async function withoutIndex(name: string) {
  const bytes = await readFile(join(fixtures, name));
  const file = {
    byteLength: bytes.length,
    slice: (start: number, end = bytes.length) =>
      Uint8Array.from(bytes.subarray(start, end)).buffer,
  };
  const metadata = await parquetMetadataAsync(file);
  const index = new PageIndex(file, parquetSchema(metadata));
  const written = new Map<ColumnChunk, Uint8Array>();
  for (const column of metadata.row_groups.flatMap((group) => group.columns)) {
    const start = Number(column.offset_index_offset);
    written.set(column, bytes.subarray(start, start + (column.offset_index_length as number)));
    delete column.offset_index_offset;
    delete column.offset_index_length;
  }
  return { metadata, index, written, bytes };
}

const locations = (bytes: Uint8Array) =>
  readOffsetIndex({ view: new DataView(bytes.buffer, bytes.byteOffset, bytes.length), offset: 0 })
    .page_locations;

describe("an index of a parquet file's pages", () => {
  it.each([
    ["pages-v1.parquet", ["text"]],
    ["pages-v2.parquet", ["text", "tags.list.element"]],
  ])(
    "of %s is the one that pyarrow writes, for the columns that can have one",
    async (name, able) => {
      const { metadata, index, written } = await withoutIndex(name);
      const indexed: string[] = [];
      let pages = 0;
      for (const group of metadata.row_groups) {
        await index.add(group, group.columns);
        for (const column of group.columns) {
          if (column.offset_index_offset === undefined) continue;
          indexed.push(column.meta_data?.path_in_schema.join(".") as string);
          const start = Number(column.offset_index_offset);
          const end = start + (column.offset_index_length as number);
          const made = locations(new Uint8Array(await index.buffer.slice(start, end)));
          expect(made).toEqual(locations(written.get(column) as Uint8Array));
          pages += made.length;
        }
      }
      expect(indexed).toEqual([...able, ...able]);
      expect(pages).toBeGreaterThan(2 * indexed.length);
    },
  );

  it.each(["pages-v1.parquet", "pages-v2.parquet"])("gives any rows of %s", async (name) => {
    const { metadata, index } = await withoutIndex(name);
    for (const group of metadata.row_groups) await index.add(group, group.columns);
    const read = async (rowStart: number, rowEnd: number) =>
      await parquetReadObjects({
        file: index.buffer,
        metadata,
        columns: ["text"],
        rowStart,
        rowEnd,
        compressors: (await import("hyparquet-compressors")).compressors,
        useOffsetIndex: true,
      });
    for (const [start, end] of [
      [0, 1],
      [7, 23],
      [38, 43],
      [59, 60],
    ] as const) {
      const expected = Array.from({ length: end - start }, (_, place) => {
        const i = start + place;
        return { text: i % 7 === 3 ? null : `document ${i} `.repeat((i % 5) + 1) };
      });
      expect(await read(start, end)).toEqual(expected);
    }
  });

  it("is not made of damaged pages", async () => {
    const { metadata, index, bytes } = await withoutIndex("pages-v1.parquet");
    bytes.fill(0xff, 4, 200);
    const [group] = metadata.row_groups;
    await expect(index.add(group as never, group?.columns ?? [])).rejects.toThrow();
  });
});
