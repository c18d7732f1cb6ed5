// Makes large files, and files of many or of long records.
import { createWriteStream } from "node:fs";
import { join } from "node:path";
import { work } from "./options.mjs";

/** A megabyte of words. It is not natural text, but costs the tokenizer about as much. */
export function proseChunk() {
  const words = "the quick brown fox jumps over a lazy dog while rain falls on old stones".split(
    " ",
  );
  const word = (i) => words[(i * 7 + (i >> 3)) % words.length];
  const prose = (n, seed) => Array.from({ length: n }, (_, i) => word(i * 31 + seed)).join(" ");
  return Array.from({ length: 64 }, (_, k) => `${k} ${prose(3000, k * 17)}. `).join("");
}

export async function writeParts(name, count, part) {
  const stream = createWriteStream(join(work, name));
  for (let i = 0; i < count; i++)
    if (!stream.write(part(i))) await new Promise((r) => stream.once("drain", r));
  await new Promise((resolve) => stream.end(resolve));
}

export async function writeParquet(name, bytes, rows, chunk, offsetIndex) {
  const { ParquetWriter, fileWriter } = await import("hyparquet-writer");
  const writer = new ParquetWriter({
    writer: fileWriter(join(work, name)),
    schema: [
      { name: "root", num_children: 2 },
      { name: "text", type: "BYTE_ARRAY", converted_type: "UTF8", repetition_type: "REQUIRED" },
      { name: "n", type: "INT32", repetition_type: "REQUIRED" },
    ],
    codec: "UNCOMPRESSED",
  });
  for (let group = 0; group < bytes / (rows * 20_000); group++) {
    const data = Array.from(
      { length: rows },
      (_, i) => `${group}/${i} ${chunk.slice(i * 7, i * 7 + 20_000)}`,
    );
    writer.write({
      columnData: [
        { name: "text", data, offsetIndex },
        { name: "n", data: data.map((_, i) => i) },
      ],
      rowGroupSize: rows,
    });
  }
  writer.finish();
}
