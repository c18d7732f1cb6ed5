// Small files that stand for large ones. The memory in use stays bounded.
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { describe, expect, it } from "vitest";
import { DataError } from "../../lib/core/errors.js";
import { prepare } from "../../lib/prepare/prepare.js";
import { fileChunks } from "../../lib/prepare/readers/bytes.js";
import { noneSkipped } from "../../lib/prepare/readers/input.js";
import { maxRecordBytes } from "../../lib/prepare/readers/jsonl.js";
import { PageLimits } from "../../lib/prepare/readers/parquet-limits.js";
import { quickstart, readDocuments, temporaryFolder, writeFiles } from "./support.js";

const megabyte = 2 ** 20;

/** A zstd frame of blocks that say "this byte, 131072 times" in four bytes each. */
function zstdBomb(blocks: number, windowExponent = 7): Buffer {
  const file = Buffer.alloc(6 + 4 * blocks);
  file.set([0x28, 0xb5, 0x2f, 0xfd, 0x00, windowExponent << 3]);
  for (let block = 0; block < blocks; block++) {
    file.writeUIntLE((2 ** 17 * 8) | 2 | (block === blocks - 1 ? 1 : 0), 6 + 4 * block, 3);
    file[9 + 4 * block] = 0x61;
  }
  return file;
}

async function textOf(name: string, content: Uint8Array): Promise<string> {
  const path = join(await temporaryFolder(), name);
  await writeFile(path, content);
  const file = { path, bytes: 1, mtimeMs: 0, format: "text", compression: "zstd" } as const;
  const parts: Buffer[] = [];
  for await (const { bytes } of fileChunks(file)) parts.push(bytes);
  return Buffer.concat(parts).toString("latin1");
}

async function chunksOf(name: string, content: Uint8Array) {
  const path = join(await temporaryFolder(), name);
  await writeFile(path, content);
  const compression = name.endsWith(".gz") ? "gzip" : "zstd";
  const file = { path, bytes: content.length, mtimeMs: 0, format: "text", compression } as const;
  let [bytes, largest, peak] = [0, 0, 0];
  const before = process.memoryUsage.rss();
  for await (const chunk of fileChunks(file)) {
    bytes += chunk.bytes.length;
    largest = Math.max(largest, chunk.bytes.length);
    peak = Math.max(peak, process.memoryUsage.rss() - before);
  }
  return { bytes, largest, peak };
}

describe("a compressed file", () => {
  it("of 32 KB of zstd that stands for 1 GB is read in pieces", async () => {
    const { bytes, largest, peak } = await chunksOf("a.zst", zstdBomb(8192));
    expect(bytes).toBe(2 ** 30);
    expect(largest).toBe(2 ** 17);
    expect(peak).toBeLessThan(300 * megabyte);
  }, 60_000);

  it("of gzip likewise", async () => {
    // Thirty members of 8 MB. One read of the file holds all of them.
    const member = gzipSync(Buffer.alloc(8 * megabyte), { level: 9 });
    const content = Buffer.concat(Array.from({ length: 30 }, () => member));
    expect(content.length).toBeLessThan(2 ** 18);
    const { bytes, peak } = await chunksOf("a.gz", content);
    expect(bytes).toBe(240 * megabyte);
    expect(peak).toBeLessThan(150 * megabyte);
  }, 60_000);

  it("whose window is larger than 128 MiB is refused", async () => {
    expect(await chunksOf("a.zst", zstdBomb(1, 17))).toMatchObject({ bytes: 2 ** 17 });
    const refused = chunksOf("a.zst", zstdBomb(1, 18));
    await expect(refused).rejects.toThrow(DataError);
    await expect(refused).rejects.toThrow(/a window of 256 MiB, more than the limit of 128 MiB/);
  });

  it("whose window is 128 MiB is read without moving the window for each block", async () => {
    // Moving the window for each of the blocks would move half a terabyte.
    const { bytes, peak } = await chunksOf("a.zst", zstdBomb(4096, 17));
    expect(bytes).toBe(2 ** 29);
    expect(peak).toBeLessThan(300 * megabyte);
  }, 60_000);

  it("whose blocks copy from a window that slides often gives its bytes", async () => {
    // Written by `zstd -19 --zstd=wlog=10 -c`: a window of 1 KiB, so blocks of that too.
    const written =
      "KLUv/QQAXAQAptAeCbDrhJKiPY95RBsAGwAbADd576ElhnpmuqXHLEtdnPIcNvvxziQ3vnkMAfXVZM/dLZbZeHvt" +
      "iGmOfrbIpM0umboNNO/hEXEP5w20Tb1ks0mLfHZ0miOu3W5cZov73GRTU8f8bkxy5+PsYc+Ui0stxyyd7pmhlnjo" +
      "3uQBAwCAdBerRGYLCgUnBUQAAAABAP0vqgUEPAAAAAEA/SsABDwAAAABAP0rAAQ9AAAAAQAoCgABh0qySg==";
    const words = Array.from({ length: 1500 }, (_, i) => `${(i * i) % 97} `).join("");
    const frame = Buffer.from(written, "base64");
    expect(await textOf("a.zst", Buffer.concat([frame, frame]))).toBe(words + words);
  });

  it("that needs a dictionary is refused", async () => {
    const withDictionary = zstdBomb(1);
    const header = [0x28, 0xb5, 0x2f, 0xfd, 0x01, 7 << 3, 0x2a];
    const refused = chunksOf(
      "a.zst",
      Buffer.concat([Buffer.from(header), withDictionary.subarray(6)]),
    );
    await expect(refused).rejects.toThrow(/cannot decompress .*a\.zst: it needs a dictionary/);
  });

  it("does not keep timers and signals waiting", async () => {
    const folder = await temporaryFolder();
    // A record of 5 GB, which is left out.
    await writeFile(join(folder, "a.jsonl.zst"), zstdBomb(40_000));
    const options = {
      inputs: [join(folder, "a.jsonl.zst")],
      out: join(folder, "data"),
      tokenizer: quickstart,
      badRecords: "skip",
    } as const;
    const stopped = prepare({ ...options, signal: AbortSignal.timeout(300) });
    // Without a stop the call ends with a DataError: no text.
    await expect(stopped).rejects.toMatchObject({ name: "TimeoutError" });
  }, 60_000);

  it("that is cut short or damaged anywhere is an error", async () => {
    const whole = zstdBomb(3);
    for (let length = 1; length < whole.length; length++) {
      await expect(chunksOf("a.zst", whole.subarray(0, length))).rejects.toThrow(
        /cut short|invalid/,
      );
    }
    expect(await chunksOf("a.zst", Buffer.alloc(0))).toMatchObject({ bytes: 0 });
  });
});

describe("a record", () => {
  it("that is longer than the limit is an error, or left out without being held", async () => {
    const record = (text: string) => Buffer.from(`${JSON.stringify({ text })}\n`);
    const long = Buffer.alloc(maxRecordBytes + 2, 0x61);
    long[long.length - 1] = 0x0a;
    const content = Buffer.concat([record("one"), long, record("two")]);
    const folder = await writeFiles(await temporaryFolder(), { "a.jsonl": content });
    const input = { path: join(folder, "a.jsonl") };
    await expect(readDocuments(input)).rejects.toThrow(
      /record 1: longer than 134217728 bytes.*badRecords: "skip"/,
    );
    // The error does not wait for the end of the record: here the file is damaged after its limit.
    await writeFile(join(folder, "b.jsonl.zst"), zstdBomb(2000).subarray(0, 4 * 1200));
    await expect(readDocuments({ path: join(folder, "b.jsonl.zst") })).rejects.toThrow(
      /record 0: longer than 134217728 bytes/,
    );
    const skipped = noneSkipped();
    const found = await readDocuments(input, { badRecords: "skip" }, skipped);
    expect(found.map(({ text, record: number }) => [text, number])).toEqual([
      ["one", 0],
      ["two", 2],
    ]);
    expect(skipped.bad).toBe(1);
  }, 60_000);
});

describe("a page of a parquet file", () => {
  it("may not ask for any amount of memory, nor may many of them together", () => {
    const limits = new PageLimits();
    const { GZIP } = limits.around({ GZIP: () => new Uint8Array(0) });
    const page = (length: number) => () => GZIP?.(new Uint8Array(1), length);
    expect(page(2 ** 28)).not.toThrow();
    for (const length of [2 ** 28 + 1, -1, Number.NaN]) expect(page(length)).toThrow(/a page of/);
    limits.reset();
    for (let i = 0; i < 8; i++) page(2 ** 28)();
    expect(page(1)).toThrow(/cannot be read in parts/);
    limits.reset();
    expect(page(1)).not.toThrow();
  });
});

describe("numbers that JSON does not have", () => {
  it("are read as null and counted, outside of strings alone", async () => {
    const lines = [
      '{"text": "a NaN and -Infinity", "score": NaN}',
      '{"text": "b", "score": 1, "more": [Infinity, {"x": -Infinity}]}',
      '{"text": "c \\"NaN\\" \\\\", "score": 2}',
      '{"text": "d", "score": NaN, "why": "{NaN"}',
      '{"text": "e", "score": 3}',
    ];
    const folder = await writeFiles(await temporaryFolder(), { "a.jsonl": lines.join("\n") });
    const skipped = noneSkipped();
    const all = await readDocuments({ path: folder }, {}, skipped);
    expect(all.map(({ text }) => text)).toEqual([
      "a NaN and -Infinity",
      "b",
      'c "NaN" \\',
      "d",
      "e",
    ]);
    expect(skipped).toEqual({ ...noneSkipped(), nonFinite: 3 });
    const filtered = await readDocuments({ path: folder, filter: "score >= 1" });
    expect(filtered.map(({ text }) => text)).toEqual(["b", 'c "NaN" \\', "e"]);
  });

  it.each([
    '{"text": "a", "score": NaNo}',
    '{"text": "a", "score": +NaN}',
    '{"text": "a", "score": -NaN}',
    '{"text": "a", "score": nan}',
    '{"text": "a", "score": 1NaN}',
    '{"text": "a NaN',
    "{NaN: 1}",
  ])("but %s is no JSON", async (line) => {
    const folder = await writeFiles(await temporaryFolder(), { "a.jsonl": `${line}\n` });
    await expect(readDocuments({ path: folder })).rejects.toThrow(/not JSON/);
  });
});
