import { writeFileSync } from "node:fs";
import { mkdir, symlink, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { parquetWriteFile } from "hyparquet-writer";
import { describe, expect, it } from "vitest";
import { DataError } from "../../lib/core/errors.js";
import { globExpression, globRoot } from "../../lib/files/glob.js";
import { findInput } from "../../lib/prepare/readers/index.js";
import { noneSkipped } from "../../lib/prepare/readers/input.js";
import { fixtures, readDocuments, temporaryFolder, writeFiles } from "./support.js";

const lines = (records: unknown[]) =>
  `${records.map((record) => JSON.stringify(record)).join("\n")}\n`;
const texts = async (...input: Parameters<typeof readDocuments>) =>
  (await readDocuments(...input)).map(({ text }) => text);
const records = Array.from({ length: 50 }, (_, index) => ({
  text: `document ${index} é😀 ${"word ".repeat(index)}`,
  meta: { redpajama_set_name: index % 3 === 0 ? "RedPajamaGithub" : "RedPajamaC4" },
  stars: index,
}));

describe("jsonl", () => {
  it("gives the same documents stored plainly, as gzip in several members, and as zstd", async () => {
    const text = lines(records);
    const half = Buffer.from(text).length >> 1;
    const folder = await writeFiles(await temporaryFolder(), {
      "a.jsonl": text,
      "b.jsonl.gz": Buffer.concat([
        gzipSync(Buffer.from(text).subarray(0, half)),
        gzipSync(Buffer.from(text).subarray(half)),
      ]),
      "c.json": text.replaceAll("\n", "\r\n\n").trimEnd(),
    });
    const expected = records.map((record) => record.text);
    for (const name of ["a.jsonl", "b.jsonl.gz", "c.json"]) {
      expect(await texts({ path: join(folder, name) })).toEqual(expected);
    }
    // Written by the zstd program: levels 1 and 19 in one file of two frames.
    expect(await texts({ path: join(fixtures, "records.jsonl.zst") })).toEqual([
      ...Array.from({ length: 200 }, (_, index) => `zstd document ${index}`),
    ]);
  });

  it("takes text from a nested field, filters, and drops what is too short or too long", async () => {
    const folder = await writeFiles(await temporaryFolder(), { "a.jsonl": lines(records) });
    const path = join(folder, "a.jsonl");
    const skipped = noneSkipped();
    const kept = await texts(
      { path, filter: 'meta.redpajama_set_name != "RedPajamaGithub"', minBytes: 50, maxBytes: 200 },
      {},
      skipped,
    );
    const sized = records.filter(({ text }) => {
      const bytes = Buffer.byteLength(text);
      return bytes >= 50 && bytes <= 200;
    });
    expect(kept).toEqual(
      sized.filter((_, i) => (sized[i]?.stars as number) % 3 !== 0).map(({ text }) => text),
    );
    expect(kept.length + skipped.filtered + skipped.short + skipped.long).toBe(50);
    expect(Math.min(skipped.filtered, skipped.short, skipped.long)).toBeGreaterThan(0);
    const names = await texts({ path, textField: "meta.redpajama_set_name" });
    expect(names[1]).toBe("RedPajamaC4");
  });

  it.each<[string, RegExp]>([
    ['{"text": "a"}\n{"text": \n', /a\.jsonl, record 1 \(at byte 14\): not JSON/],
    ['{"text": "a"}\n[1]\n', /record 1: expected a JSON object/],
    ['{"text": "a"}\n"x"\n', /record 1: expected a JSON object/],
    [
      '{"text": "a"}\n{"body": "b", "id": 1}\n',
      /record 1: no field text or content; it has body, id/,
    ],
    ['{"text": "a"}\n{"text": 5}\n', /record 1: text is no text but number/],
  ])("refuses %j, or leaves the record out and counts it", async (content, message) => {
    const folder = await writeFiles(await temporaryFolder(), { "a.jsonl": content });
    const error = await readDocuments({ path: folder }).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(DataError);
    expect((error as Error).message).toMatch(message);
    const skipped = noneSkipped();
    expect(await texts({ path: folder }, { badRecords: "skip" }, skipped)).toEqual(["a"]);
    expect(skipped.bad).toBe(1);
  });

  it("counts null and empty text as empty, and refuses invalid UTF-8", async () => {
    const folder = await writeFiles(await temporaryFolder(), {
      "a.jsonl": '{"text": null}\n{"text": ""}\n{"text": "x", "content": "y"}\n',
    });
    const skipped = noneSkipped();
    expect(await texts({ path: folder }, {}, skipped)).toEqual(["x"]);
    expect(skipped.empty).toBe(2);
    await writeFile(join(folder, "a.jsonl"), Buffer.from('{"text": "\xff"}\n', "latin1"));
    await expect(readDocuments({ path: folder })).rejects.toThrow(
      /record 0: invalid UTF-8 at byte 10/,
    );
    expect(await texts({ path: folder }, { invalidUtf8: "replace" })).toEqual(["\ufffd"]);
  });

  it("tells a nested field that is missing from one that is null", async () => {
    const folder = await temporaryFolder();
    const path = join(folder, "a.jsonl");
    const input = { path, textField: "meta.body" };
    await writeFile(
      path,
      lines([{ meta: { body: null } }, { meta: null }, { meta: { body: "x" } }]),
    );
    const skipped = noneSkipped();
    expect(await texts(input, {}, skipped)).toEqual(["x"]);
    expect(skipped).toMatchObject({ empty: 2, bad: 0 });
    const cases: [unknown, RegExp][] = [
      [
        { meta: { text: "a", url: "b" } },
        /record 1: no field meta\.body; meta has text, url; name/,
      ],
      [{ meta: {} }, /record 1: no field meta\.body; meta has nothing/],
      [{ meta: "text" }, /record 1: no field meta\.body; it has meta/],
      [{ body: "a" }, /record 1: no field meta\.body; it has body/],
      [{ meta: { body: { deeper: 1 } } }, /record 1: meta\.body is no text but object/],
    ];
    for (const [bad, message] of cases) {
      await writeFile(path, lines([{ meta: { body: "x" } }, bad]));
      await expect(texts(input)).rejects.toThrow(message);
      const left = noneSkipped();
      expect(await texts(input, { badRecords: "skip" }, left)).toEqual(["x"]);
      expect(left).toMatchObject({ empty: 0, bad: 1 });
    }
  });

  it("names a compressed file that is cut short or damaged", async () => {
    const folder = await temporaryFolder();
    const zipped = gzipSync(lines(records));
    await writeFile(join(folder, "a.jsonl.gz"), zipped.subarray(0, zipped.length - 10));
    await expect(readDocuments({ path: folder })).rejects.toThrow(
      /cannot decompress .*a\.jsonl\.gz: unexpected end of file/,
    );
    const { readFile } = await import("node:fs/promises");
    const zstd = await readFile(join(fixtures, "records.jsonl.zst"));
    await writeFile(join(folder, "a.jsonl.zst"), zstd);
    await truncate(join(folder, "a.jsonl.zst"), zstd.length - 3);
    await expect(readDocuments({ path: join(folder, "a.jsonl.zst") })).rejects.toThrow(
      /cannot decompress .*a\.jsonl\.zst/,
    );
    await writeFile(join(folder, "a.jsonl.zst"), "no zstd at all");
    await expect(readDocuments({ path: join(folder, "a.jsonl.zst") })).rejects.toThrow(DataError);
  });
});

describe("parquet", () => {
  const write = (filename: string, rowGroupSize: number) =>
    parquetWriteFile({
      filename,
      rowGroupSize,
      columnData: [
        { name: "text", data: records.map(({ text }) => text), type: "STRING" },
        { name: "meta", data: records.map(({ meta }) => meta), type: "JSON" },
        { name: "stars", data: records.map(({ stars }) => BigInt(stars)), type: "INT64" },
      ],
    });

  it("gives the documents of several row groups, with a filter on other columns", async () => {
    const folder = await temporaryFolder();
    write(join(folder, "a.parquet"), 7);
    expect(await texts({ path: folder })).toEqual(records.map(({ text }) => text));
    const kept = await texts({
      path: folder,
      filter: 'stars > 20 and meta.redpajama_set_name == "RedPajamaC4"',
    });
    expect(kept).toEqual(
      records.filter(({ stars }) => stars > 20 && stars % 3 !== 0).map(({ text }) => text),
    );
  });

  it("reads columns of structures and lists, and files of other programs", async () => {
    // Written by hyparquet-writer's nested columns: list of strings and a struct.
    const folder = await temporaryFolder();
    parquetWriteFile({
      filename: join(folder, "n.parquet"),
      schema: [
        { name: "root", num_children: 2 },
        { name: "doc", repetition_type: "OPTIONAL", num_children: 2 },
        {
          name: "content",
          type: "BYTE_ARRAY",
          converted_type: "UTF8",
          repetition_type: "OPTIONAL",
        },
        { name: "lang", type: "BYTE_ARRAY", converted_type: "UTF8", repetition_type: "OPTIONAL" },
        { name: "n", type: "INT32", repetition_type: "REQUIRED" },
      ],
      columnData: [
        { name: "doc", data: [{ content: "one", lang: "c" }, null, { content: "two", lang: "d" }] },
        { name: "n", data: [1, 2, 3] },
      ],
    });
    const skipped = noneSkipped();
    expect(
      await texts({ path: folder, textField: "doc.content", filter: "n < 3" }, {}, skipped),
    ).toEqual(["one"]);
    expect(skipped).toMatchObject({ empty: 1, filtered: 1 });
  });

  it("refuses text that is no UTF-8 with file and record, replaces it, or leaves the record out", async () => {
    const path = join(await temporaryFolder(), "a.parquet");
    const bad = Buffer.from([0x61, 0xff, 0x62]);
    // The value is in its own page once and in a dictionary once.
    for (const data of [
      ["one", bad, "\ufefftwo"],
      ["one", bad, "\ufefftwo", bad, "one", "one", "one"],
    ]) {
      parquetWriteFile({
        filename: path,
        schema: [
          { name: "root", num_children: 2 },
          { name: "text", type: "BYTE_ARRAY", converted_type: "UTF8", repetition_type: "REQUIRED" },
          { name: "lang", type: "BYTE_ARRAY", converted_type: "UTF8", repetition_type: "REQUIRED" },
        ],
        columnData: [
          { name: "text", data: data.map((value) => Buffer.from(value as string)) },
          { name: "lang", data: data.map(() => Buffer.from("c")) },
        ],
      });
      await expect(texts({ path })).rejects.toThrow(
        /a\.parquet, record 1: invalid UTF-8 at byte 1 \(0xff\).*invalidUtf8: "replace"/,
      );
      // A byte order mark is part of the value, as in JSON.
      const replaced = data.map((value) => (value === bad ? "a\ufffdb" : value));
      expect(await texts({ path }, { invalidUtf8: "replace" })).toEqual(replaced);
      const skipped = noneSkipped();
      const sound = data.filter((value) => value !== bad);
      expect(await texts({ path }, { badRecords: "skip" }, skipped)).toEqual(sound);
      expect(skipped.bad).toBe(data.length - sound.length);
      // A column that is not read cannot be invalid.
      expect(await texts({ path, textField: "lang" })).toHaveLength(data.length);
      await expect(texts({ path, textField: "lang", filter: 'text != "x"' })).rejects.toThrow(
        /record 1: invalid UTF-8/,
      );
    }
  });

  it("names what is wrong with a file", async () => {
    const folder = await temporaryFolder();
    const path = join(folder, "a.parquet");
    write(path, 100);
    await expect(readDocuments({ path, textField: "body" })).rejects.toThrow(
      /a\.parquet: no column body; it has text, meta, stars/,
    );
    const other = join(folder, "b.parquet");
    const columnData = [{ name: "body", data: ["x"], type: "STRING" as const }];
    parquetWriteFile({ filename: other, columnData });
    await expect(readDocuments({ path: other })).rejects.toThrow(
      /b\.parquet: no column text or content; it has body; name the column as textField/,
    );
    await truncate(path, 500);
    await expect(readDocuments({ path })).rejects.toThrow(/cannot read .*a\.parquet: /);
    writeFileSync(path, "");
    await expect(readDocuments({ path })).rejects.toThrow(DataError);
  });
});

describe("folders and patterns", () => {
  it("reads a Hugging Face data set as it is downloaded: its data, not its README", async () => {
    const folder = await temporaryFolder();
    await writeFiles(folder, {
      "README.md": "---\nconfigs:\n---\n# A data set",
      ".gitattributes": "*.parquet lfs",
      "dataset_infos.json": "{}",
      "blobs/b1": lines([{ text: "linked" }]),
      "data/validation-00000-of-00001.jsonl": lines([{ text: "held out" }]),
      "data/test-00000-of-00001.jsonl": lines([{ text: "tested" }]),
      "data/train-00000-of-00002.jsonl": lines([{ text: "first" }]),
    });
    await symlink(join(folder, "blobs/b1"), join(folder, "data/train-00001-of-00002.jsonl"));
    expect(await texts({ path: folder })).toEqual(["first", "linked"]);
    expect(await texts({ path: folder, split: "validation" })).toEqual(["held out"]);
    expect(await texts({ path: folder, split: "all" })).toHaveLength(4);
    const { notes } = await findInput({ path: folder });
    expect(notes.join()).toMatch(/read the split train, 2 files; 2 of other splits were left out/);
    await expect(findInput({ path: join(folder, "data/train*"), split: "test" })).rejects.toThrow(
      /no file of the split test among 2/,
    );
  });

  it("takes splits from folders' names, and all files when names tell none apart", async () => {
    const folder = await temporaryFolder();
    await writeFiles(folder, {
      "train/chunk1/example_0.jsonl": lines([{ text: "t" }]),
      "validation/chunk1/example_0.jsonl": lines([{ text: "v" }]),
    });
    expect(await texts({ path: folder })).toEqual(["t"]);
    expect(await texts({ path: folder, split: "validation" })).toEqual(["v"]);
    const plain = await writeFiles(await temporaryFolder(), {
      "latest/x.jsonl": lines([{ text: "1" }]),
      "contest/y.jsonl": lines([{ text: "2" }]),
    });
    expect(await texts({ path: plain })).toEqual(["2", "1"]);
  });

  it("reads what a pattern matches, in order", async () => {
    const folder = await temporaryFolder();
    for (const name of ["a/1.jsonl", "a/b/2.jsonl", "c/3.jsonl", "c/4.txt"]) {
      await mkdir(join(folder, name, ".."), { recursive: true });
      await writeFile(join(folder, name), name.endsWith(".txt") ? "four" : lines([{ text: name }]));
    }
    expect(await texts({ path: join(folder, "*/*.jsonl") })).toEqual(["a/1.jsonl", "c/3.jsonl"]);
    expect(await texts({ path: join(folder, "**/*.jsonl") })).toHaveLength(3);
    expect(await texts({ path: join(folder, "{a,c}/[13].jsonl") })).toHaveLength(2);
    expect(await texts({ path: join(folder, "c/?.txt") })).toEqual(["four"]);
    await expect(findInput({ path: join(folder, "x/*.jsonl") })).rejects.toThrow(
      /cannot read|matches no file/,
    );
    await expect(findInput({ path: join(folder, "a/*.parquet") })).rejects.toThrow(
      /matches no file/,
    );
  });

  it.each<[string, string, boolean]>([
    ["data/**/x.txt", "data/x.txt", true],
    ["data/**/x.txt", "data/a/b/x.txt", true],
    ["data/*.txt", "data/a/x.txt", false],
    ["./data/*.txt", "data/x.txt", true],
    ["a.b/*.c+", "a.b/x.c+", true],
    ["a/[!x].t", "a/x.t", false],
    ["a/[!x].t", "a/y.t", true],
  ])("pattern %s and path %s: %s", (pattern, path, expected) => {
    expect(globExpression(pattern).test(path)).toBe(expected);
    expect(path.startsWith(globRoot(pattern).replace(/^\.\/?/, ""))).toBe(true);
  });
});
