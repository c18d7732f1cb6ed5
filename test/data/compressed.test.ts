// Compressed files of various programs: several parts in a row, padding, and truncation at any
// place.
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { describe, expect, it } from "vitest";
import { DataError } from "../../lib/core/errors.js";
import { fileChunks } from "../../lib/prepare/readers/bytes.js";
import { fixtures, temporaryFolder } from "./support.js";

/** Bytes per read. */
const chunk = 2 ** 18;

async function read(name: string, content: Uint8Array): Promise<Buffer> {
  const path = join(await temporaryFolder(), name);
  await writeFile(path, content);
  const parts: Buffer[] = [];
  const compression = name.endsWith(".gz") ? "gzip" : "zstd";
  const file = { path, bytes: content.length, mtimeMs: 0, format: "jsonl", compression } as const;
  for await (const { bytes } of fileChunks(file)) parts.push(bytes);
  return Buffer.concat(parts);
}

/** Bytes that do not repeat, so each place is recognizable. */
function content(length: number, seed = 1): Buffer {
  const bytes = Buffer.alloc(length);
  for (let at = 0, state = seed; at < length; at++) {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    bytes[at] = state >>> 16;
  }
  return bytes;
}

/**
 * A zstd frame that takes `stored` bytes of a file: a window of 128 KiB and blocks that are stored
 * as they are.
 */
function frame(stored: number, seed: number): { file: Buffer; bytes: Buffer } {
  const blockBytes = 2 ** 17;
  const header = Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0x00, 7 << 3]);
  const blocks = Math.max(1, Math.ceil((stored - header.length) / (blockBytes + 3)));
  const bytes = content(stored - header.length - 3 * blocks, seed);
  const parts: Buffer[] = [header];
  for (let block = 0; block < blocks; block++) {
    const part = bytes.subarray(block * blockBytes, (block + 1) * blockBytes);
    const size = Buffer.alloc(3);
    size.writeUIntLE((part.length << 3) | (block === blocks - 1 ? 1 : 0), 0, 3);
    parts.push(size, part);
  }
  const file = Buffer.concat(parts);
  expect(file.length).toBe(stored);
  return { file, bytes };
}

/** A skippable frame, which no decompressor returns. pzstd writes one before each of its frames. */
function skippable(length: number): Buffer {
  const head = Buffer.from([0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]);
  head.writeUInt32LE(length, 4);
  return Buffer.concat([head, content(length, 99)]);
}

describe("zstd", () => {
  it.each<[string, number[]]>([
    ["inside the first chunk", [1000, 2000, 500]],
    ["at a chunk's border", [chunk, 1000]],
    ["at every chunk's border", [chunk, chunk, chunk]],
    ["just before and just behind a border", [chunk - 1, 1000, chunk - 998, chunk + 1]],
    [
      "beyond the first chunk, and several in a later one",
      [chunk + 40_000, 700, 900, 3 * chunk, 9],
    ],
    ["at a border of the decompressor's steps", [2 ** 15, 2 ** 15, 2 ** 16, 12]],
    ["with headers that a border cuts", [chunk - 3, chunk - 6, chunk - 9, 5000]],
  ])("gives all frames when one ends %s", async (_, sizes) => {
    const frames = sizes.map((stored, seed) => frame(stored, seed + 1));
    const expected = Buffer.concat(frames.map(({ bytes }) => bytes));
    const plain = await read("a.zst", Buffer.concat(frames.map(({ file }) => file)));
    expect(plain.equals(expected)).toBe(true);
    const skipped = frames.flatMap(({ file }, i) => [skippable(4), file, skippable(i * 7)]);
    const between = await read("a.zst", Buffer.concat(skipped));
    expect(between.equals(expected)).toBe(true);
  });

  it("gives all frames of files that the zstd program wrote and somebody put together", async () => {
    const one = await readFile(join(fixtures, "records.jsonl.zst"));
    const text = await read("a.zst", one);
    expect(text.toString()).toMatch(/^(\{.*zstd document \d+.*\}\n){200}$/);
    const count = Math.ceil((2 * chunk) / one.length);
    const many = await read("a.zst", Buffer.concat(new Array(count).fill(one)));
    expect(many.equals(Buffer.concat(new Array(count).fill(text)))).toBe(true);
  });

  it.each<[string, Buffer]>([
    ["is cut within a block", frame(5000, 1).file.subarray(0, 4000)],
    [
      "is cut within a later frame's header",
      Buffer.concat([frame(50, 1).file, frame(50, 2).file.subarray(0, 4)]),
    ],
    [
      "is cut within what is skipped",
      Buffer.concat([frame(50, 1).file, skippable(100).subarray(0, 60)]),
    ],
    [
      "goes on with something else",
      Buffer.concat([frame(50, 1).file, Buffer.from("no zstd at all")]),
    ],
    ["goes on with zeros", Buffer.concat([frame(50, 1).file, Buffer.alloc(chunk)])],
  ])("refuses a file that %s, and names it", async (_, file) => {
    const error = await read("a.zst", file).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(DataError);
    expect((error as Error).message).toMatch(/cannot decompress .*a\.zst: /);
  });
});

describe("gzip", () => {
  const bytes = content(3 * chunk);
  const member = gzipSync(bytes);

  it.each<[string, number]>([
    ["a few zeros", 9],
    ["zeros up to a tape's block", 2 ** 20 - (member.length % 2 ** 20)],
    ["zeros over many chunks", 20 * chunk],
  ])("ends where its last member ends: %s behind it", async (_, zeros) => {
    const padded = Buffer.concat([member, Buffer.alloc(zeros)]);
    expect((await read("a.gz", padded)).equals(bytes)).toBe(true);
    // One small member, and one that ends at the end of a chunk, so that the next chunk begins with
    // zeros.
    const small = gzipSync(content(100));
    const fill = gzipSync(content(chunk - small.length - 23), { level: 0 });
    for (const parts of [[small], [small, fill]]) {
      const whole = await read("a.gz", Buffer.concat([...parts, Buffer.alloc(zeros)]));
      expect(whole.subarray(0, 100).equals(content(100))).toBe(true);
      expect(whole.length).toBe(parts.length === 1 ? 100 : 100 + chunk - small.length - 23);
    }
  });

  it.each<[string, Buffer]>([
    ["something else", Buffer.from("tail")],
    ["a member behind zeros", Buffer.concat([Buffer.alloc(512), gzipSync("more")])],
    ["a member behind many zeros", Buffer.concat([Buffer.alloc(3 * chunk), gzipSync("more")])],
  ])("refuses %s behind its end rather than leave it out", async (_, tail) => {
    const error = await read("a.gz", Buffer.concat([member, tail])).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(DataError);
    expect((error as Error).message).toMatch(/cannot decompress .*a\.gz: /);
  });

  it("can be left early, and cut short or damaged anywhere, without waiting for ever", async () => {
    const path = join(await temporaryFolder(), "a.gz");
    const file = { path, bytes: 0, mtimeMs: 0, format: "jsonl", compression: "gzip" } as const;
    await writeFile(path, Buffer.concat([member, Buffer.alloc(chunk)]));
    for await (const { bytes: part } of fileChunks(file)) {
      expect(part.length).toBeGreaterThan(0);
      break;
    }
    for (const length of [1, 9, 10, 1000, chunk, chunk + 1, member.length - 1]) {
      await expect(read("a.gz", member.subarray(0, length))).rejects.toThrow(/unexpected end/);
    }
    for (const at of [0, 100, chunk - 1, chunk, member.length - 5]) {
      const damaged = Buffer.from(member);
      damaged.writeUInt8(damaged.readUInt8(at) ^ 0xff, at);
      // Damage in a stored block shows only at the end.
      await expect(read("a.gz", damaged)).rejects.toThrow(/cannot decompress/);
    }
  });
});
