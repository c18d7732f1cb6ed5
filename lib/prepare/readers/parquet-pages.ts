import type { AsyncBuffer, ColumnChunk, RowGroup, SchemaTree } from "hyparquet";

/** A page of a column: its first byte, its length with its header, and its first row in the group. */
interface PageLocation {
  offset: number;
  bytes: number;
  firstRow: number;
}

/**
 * A parquet file with an index of its columns' pages. Where the writer left the index out, as
 * pyarrow does by default, it is built here. With it, a row group that spans the whole file can be
 * read in parts. The index of each column appears after the end of the file, as if it had been
 * written there.
 */
export class PageIndex {
  /** The file, followed by the added indices. */
  readonly buffer: AsyncBuffer;
  readonly #file: AsyncBuffer;
  readonly #schema: SchemaTree;
  #added = Buffer.alloc(0);

  /** @param schema schema of the file, from `parquetSchema` */
  constructor(file: AsyncBuffer, schema: SchemaTree) {
    this.#file = file;
    this.#schema = schema;
    this.buffer = {
      byteLength: file.byteLength,
      slice: (start, end) =>
        start < file.byteLength
          ? file.slice(start, end)
          : Uint8Array.from(
              this.#added.subarray(start - file.byteLength, (end as number) - file.byteLength),
            ).buffer,
    };
  }

  /**
   * Indexes those of the group's columns that lack an index. A column whose pages cannot be told
   * apart stays without one.
   */
  async add(group: RowGroup, columns: readonly ColumnChunk[]): Promise<void> {
    for (const column of columns) {
      if (column.offset_index_offset !== undefined) continue;
      const pages = await this.#pagesOf(column, Number(group.num_rows));
      if (pages === null) continue;
      const index = serialised(pages);
      column.offset_index_offset = BigInt(this.#file.byteLength + this.#added.length);
      column.offset_index_length = index.length;
      this.#added = Buffer.concat([this.#added, index]);
    }
  }

  async #pagesOf(
    { meta_data: meta }: ColumnChunk,
    groupRows: number,
  ): Promise<PageLocation[] | null> {
    if (meta === undefined) return null;
    const isFlat = !hasRepetition(this.#schema, meta.path_in_schema);
    const start = Number(meta.dictionary_page_offset || meta.data_page_offset);
    const end = start + Number(meta.total_compressed_size);
    const pages: PageLocation[] = [];
    let rows = 0;
    for (let at = start; at < end; ) {
      const header = await this.#headerAt(at, end);
      const bytes = header.length + header.compressedBytes;
      if (header.holdsData) {
        const count = header.rows ?? (isFlat ? header.values : undefined);
        if (count === undefined) return null;
        pages.push({ offset: at, bytes, firstRow: rows });
        rows += count;
      }
      at += bytes;
    }
    return rows === groupRows ? pages : null;
  }

  /**
   * Reads a page header. It may hold the page's smallest and largest value, so it may have any
   * length.
   */
  async #headerAt(at: number, end: number): Promise<PageHeader> {
    for (let window = 2 ** 12; ; window *= 8) {
      const bytes = Buffer.from(await this.#file.slice(at, Math.min(end, at + window)));
      try {
        return pageHeader(bytes);
      } catch (error) {
        if (!(error instanceof RangeError) || at + window >= end) throw error;
      }
    }
  }
}

/** Whether one row may hold several values of the column, or none. */
function hasRepetition(schema: SchemaTree, path: readonly string[]): boolean {
  let node: SchemaTree | undefined = schema;
  for (const name of path) {
    node = node.children.find((child) => child.element.name === name);
    if (node === undefined || node.element.repetition_type === "REPEATED") return true;
  }
  return false;
}

interface PageHeader {
  /** Length of the header itself. */
  length: number;
  compressedBytes: number;
  /** Whether the page holds data. A dictionary page does not. */
  holdsData: boolean;
  values: number | undefined;
  rows: number | undefined;
}

type Fields = Map<number, number | Fields>;

/**
 * Parses the fields of `PageHeader`, numbered as in parquet.thrift. @throws RangeError if the bytes
 * end early
 */
function pageHeader(bytes: Buffer): PageHeader {
  const reader = new ThriftReader(bytes);
  const fields = reader.struct();
  const number = (from: Fields | undefined, id: number) => from?.get(id) as number | undefined;
  const [version1, version2] = [fields.get(5), fields.get(8)] as (Fields | undefined)[];
  const compressedBytes = number(fields, 3);
  if (compressedBytes === undefined || compressedBytes < 0) throw new Error("a damaged page");
  return {
    length: reader.at,
    compressedBytes,
    holdsData: version1 !== undefined || version2 !== undefined,
    values: number(version1 ?? version2, 1),
    rows: number(version2, 3),
  };
}

/**
 * Reads Thrift's compact protocol as far as page headers need it: numbers and structures. Other
 * types are skipped.
 */
class ThriftReader {
  at = 0;
  readonly #bytes: Buffer;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  struct(): Fields {
    const fields: Fields = new Map();
    let id = 0;
    for (;;) {
      const head = this.#byte();
      const type = head & 0x0f;
      if (type === 0) return fields;
      id = head >> 4 === 0 ? this.#zigzag() : id + (head >> 4);
      const value = this.#value(type);
      if (value !== undefined) fields.set(id, value);
    }
  }

  #value(type: number): number | Fields | undefined {
    switch (type) {
      case 1: // the type itself says true or false
      case 2:
        return undefined;
      case 3:
        return this.#byte();
      case 4:
      case 5:
      case 6:
        return this.#zigzag();
      case 7:
        return this.#skip(8);
      case 8:
        return this.#skip(this.#varint());
      case 12:
        return this.struct();
      default:
        throw new Error(`a page's header holds a field of type ${type}`);
    }
  }

  #skip(bytes: number): undefined {
    this.at += bytes;
    if (this.at > this.#bytes.length) throw new RangeError("cut short");
  }

  #byte(): number {
    return this.#bytes.readUInt8(this.at++);
  }

  #varint(): number {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      const byte = this.#byte();
      value += (byte & 0x7f) * factor;
      if (byte < 0x80) return value;
    }
  }

  #zigzag(): number {
    const value = this.#varint();
    return value % 2 === 0 ? value / 2 : -(value + 1) / 2;
  }
}

/** Serialises `OffsetIndex` of parquet.thrift: a list of structures of three numbers. */
function serialised(pages: readonly PageLocation[]): Buffer {
  const [i32, i64, list, struct] = [5, 6, 9, 12];
  const field = (type: number): number => 0x10 | type;
  const bytes: number[] = [field(list), 0xf0 | struct];
  const varint = (value: number): void => {
    let rest = value;
    for (; rest >= 128; rest = Math.floor(rest / 128)) bytes.push((rest % 128) | 0x80);
    bytes.push(rest);
  };
  varint(pages.length);
  for (const page of pages) {
    bytes.push(field(i64));
    varint(page.offset * 2);
    bytes.push(field(i32));
    varint(page.bytes * 2);
    bytes.push(field(i64));
    varint(page.firstRow * 2);
    bytes.push(0);
  }
  bytes.push(0);
  return Buffer.from(bytes);
}
