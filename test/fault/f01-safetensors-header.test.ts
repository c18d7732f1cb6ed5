// docs/faults.md, row F1: every hostile header is refused with a typed error, at once and in little
// memory.
import {
  closeSync,
  ftruncateSync,
  openSync,
  readFileSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { readSafetensors } from "../../lib/checkpoint/safetensors.js";
import { CheckpointError } from "../../lib/core/errors.js";
import { temporaryFolder } from "../checkpoint/support/harness.js";
import { entry, rawFile } from "../checkpoint/support/raw-safetensors.js";

let folder: ReturnType<typeof temporaryFolder>;
beforeAll(() => {
  folder = temporaryFolder();
});
afterAll(() => folder.remove());

function write(bytes: Uint8Array): string {
  const path = join(folder.path, "file.safetensors");
  writeFileSync(path, bytes);
  return path;
}

/** A sparse file of `size` bytes that starts with these bytes. */
function writeSparse(start: Uint8Array, size: number): string {
  const path = join(folder.path, "sparse.safetensors");
  const file = openSync(path, "w");
  writeSync(file, start);
  ftruncateSync(file, size);
  closeSync(file);
  return path;
}

const good = `{${entry("a")}}`;
const utf8 = (...bytes: number[]) =>
  new Uint8Array([...Buffer.from('{"'), ...bytes, ...Buffer.from('":1}')]);
const metadata = (text: string) => `{"__metadata__":${text}}`;

const table: [what: string, file: Uint8Array, message: RegExp][] = [
  ["an empty file", new Uint8Array(0), /at least 10 bytes, this one 0/],
  ["seven bytes", new Uint8Array(7), /at least 10 bytes, this one 7/],
  ["length 0", rawFile(good, 8, { length: 0n }), /given as 0 bytes/],
  ["length 1", rawFile(good, 8, { length: 1n }), /given as 1 bytes/],
  ["a length beyond the file", rawFile(good, 8, { length: 1000n }), /only \d+ follow/],
  ["length 2^63", rawFile(good, 8, { length: 1n << 63n }), /more than the limit/],
  ["length 2^64 - 1", rawFile(good, 8, { length: (1n << 64n) - 1n }), /more than the limit/],
  [
    "length 2^64 - 8, which wraps when 8 is added",
    rawFile(good, 8, { length: (1n << 64n) - 8n }),
    /more than/,
  ],
  ["a list instead of an object", rawFile("[1,2]"), /must start with '\{'/],
  ["white space before the object", rawFile(` ${good}`, 8), /must start with '\{'/],
  ["a string instead of an object", rawFile('"abc"'), /must start with '\{'/],
  ["NUL padding", rawFile(`${good}\0\0`, 8), /after the header's closing brace/],
  ["a second object", rawFile(`${good}{}`, 8), /after the header's closing brace/],
  ["a cut header", rawFile(good.slice(0, -2), 8), /expected '\}'/],
  ["a cut string", rawFile('{"abc'), /does not end/],
  ["a trailing comma", rawFile(`{${entry("a")},}`, 8), /expected a key/],
  ["a key without quotes", rawFile("{a:1}"), /expected a key/],
  ["a comment", rawFile(`{/**/${entry("a")}}`, 8), /expected a key/],
  ["depth 10^5", rawFile("{".repeat(100_000)), /expected a key/],
  [
    "depth 10^5 in a shape",
    rawFile(`{${entry("a", "[".repeat(100_000))}}`),
    /non-negative integer/,
  ],
  [
    "depth 10^5 in the metadata",
    rawFile(metadata(`{"a":${"[".repeat(100_000)}}`)),
    /must be a string/,
  ],
  ["a lone continuation byte", rawFile(utf8(0x80)), /invalid UTF-8/],
  ["an overlong slash", rawFile(utf8(0xc0, 0xaf)), /invalid UTF-8/],
  ["an overlong three-byte form", rawFile(utf8(0xe0, 0x80, 0xaf)), /invalid UTF-8/],
  ["an encoded surrogate", rawFile(utf8(0xed, 0xa0, 0x80)), /invalid UTF-8/],
  ["a code point beyond U+10FFFF", rawFile(utf8(0xf4, 0x90, 0x80, 0x80)), /invalid UTF-8/],
  ["a cut UTF-8 sequence", rawFile(new Uint8Array([0x7b, 0x22, 0xe2, 0x82])), /invalid UTF-8/],
  ["a lone surrogate escape", rawFile('{"\\ud800":1}'), /lone surrogate/],
  ["an unknown escape", rawFile('{"\\x41":1}'), /unknown escape/],
  ["a cut escape", rawFile('{"\\u12'), /incomplete/],
  ["a newline in a string", rawFile('{"a\nb":1}'), /control character/],
  ["a NUL in a name, escaped", rawFile(`{${entry("a\\u0000b")}}`, 8), /control character/],
  ["__proto__ as a name", rawFile(`{${entry("__proto__")}}`, 8), /"__proto__" is refused/],
  [
    "__proto__ as a name, escaped",
    rawFile(`{${entry("\\u005f_proto__")}}`, 8),
    /"__proto__" is refused/,
  ],
  ["__proto__ in the metadata", rawFile(metadata('{"__proto__":"x"}')), /"__proto__" is refused/],
  [
    "one name twice",
    rawFile(`{${entry("a")},${entry("a", "[2]", "[8,16]")}}`, 16),
    /"a" is given twice/,
  ],
  [
    "one name twice, one escaped",
    rawFile(`{${entry("a")},${entry("\\u0061", "[2]", "[8,16]")}}`, 16),
    /twice/,
  ],
  ["a key twice in a tensor", rawFile(`{"a":{"dtype":"F32","dtype":"F32"}}`), /two dtypes/],
  ["metadata twice", rawFile('{"__metadata__":{},"__metadata__":{}}'), /given twice/],
  ["a metadata key twice", rawFile(metadata('{"a":"1","a":"2"}')), /"a" is given twice/],
  ["metadata that is a number", rawFile(metadata("1")), /object of strings/],
  ["a metadata value that is a number", rawFile(metadata('{"a":1}')), /must be a string/],
  ["a tensor that is null", rawFile('{"a":null}'), /must be an object/],
  ["no dtype", rawFile('{"a":{"shape":[2],"data_offsets":[0,8]}}', 8), /has no dtype/],
  ["no shape", rawFile('{"a":{"dtype":"F32","data_offsets":[0,8]}}', 8), /has no shape/],
  ["no offsets", rawFile('{"a":{"dtype":"F32","shape":[2]}}', 8), /has no data_offsets/],
  ["an unknown key", rawFile('{"a":{"dtype":"F32","strides":[1]}}', 8), /unknown key "strides"/],
  [
    "an unknown dtype",
    rawFile(`{${entry("a", "[2]", "[0,8]", '"F31"')}}`, 8),
    /"a": unknown dtype "F31"/,
  ],
  [
    "a dtype that is a number",
    rawFile(`{${entry("a", "[2]", "[0,8]", "32")}}`, 8),
    /must be a string/,
  ],
  ["a float offset", rawFile(`{${entry("a", "[2]", "[0.0,8]")}}`, 8), /got a fraction/],
  ["an exponent", rawFile(`{${entry("a", "[2e0]")}}`, 8), /got a fraction or an exponent/],
  ["a negative offset", rawFile(`{${entry("a", "[2]", "[-8,0]")}}`, 8), /non-negative integer/],
  ["negative zero", rawFile(`{${entry("a", "[2]", "[-0,8]")}}`, 8), /non-negative integer/],
  ["a leading zero", rawFile(`{${entry("a", "[02]")}}`, 8), /leading zero/],
  [
    "an offset of 2^53 + 1",
    rawFile(`{${entry("a", "[2]", "[0,9007199254740993]")}}`, 8),
    /above 2\^53/,
  ],
  [
    "an offset of 10^400",
    rawFile(`{${entry("a", "[2]", `[0,1${"0".repeat(400)}]`)}}`, 8),
    /above 2\^53/,
  ],
  [
    "an offset that is a string",
    rawFile(`{${entry("a", "[2]", '["0",8]')}}`, 8),
    /non-negative integer/,
  ],
  ["one offset", rawFile(`{${entry("a", "[2]", "[8]")}}`, 8), /must be two numbers/],
  ["three offsets", rawFile(`{${entry("a", "[2]", "[0,8,8]")}}`, 8), /must be two numbers/],
  [
    "begin after end",
    rawFile(`{${entry("a", "[2]", "[8,0]")}}`, 8),
    /begins at byte 8 and ends at 0/,
  ],
  [
    "an end beyond the file",
    rawFile(`{${entry("a", "[4]", "[0,16]")}}`, 8),
    /ends at byte 16 of 8/,
  ],
  [
    "a shape that needs more",
    rawFile(`{${entry("a", "[3]")}}`, 8),
    /need 12 bytes, its data_offsets hold 8/,
  ],
  [
    "a shape whose product wraps to 2",
    rawFile(`{${entry("a", "[4294967296,4294967296,2]")}}`, 8),
    /too large/,
  ],
  [
    "a shape that wraps, with a zero",
    rawFile(`{${entry("a", "[4503599627370496,4503599627370496,0]", "[0,0]")}}`),
    /too large/,
  ],
  [
    "a size that wraps by the dtype",
    rawFile(`{${entry("a", "[4611686018427387904]")}}`, 8),
    /above 2\^53/,
  ],
  [
    "a shape of 33 axes",
    rawFile(`{${entry("a", `[2${",1".repeat(32)}]`)}}`, 8),
    /more than 32 dimensions/,
  ],
  ["an overlap", rawFile(`{${entry("a")},${entry("b", "[2]", "[4,12]")}}`, 12), /"b": overlaps/],
  ["the same bytes twice", rawFile(`{${entry("a")},${entry("b")}}`, 8), /overlaps/],
  [
    "a hole",
    rawFile(`{${entry("a")},${entry("b", "[2]", "[12,20]")}}`, 20),
    /4 unused bytes before it/,
  ],
  [
    "a hole at the start",
    rawFile(`{${entry("a", "[2]", "[8,16]")}}`, 16),
    /8 unused bytes before it/,
  ],
  ["trailing bytes", rawFile(good, 9), /trailing bytes/],
  ["data without tensors", rawFile("{}", 4), /trailing bytes/],
  [
    "a misaligned tensor",
    rawFile(`{${entry("b", "[1]", "[0,1]", '"U8"')},${entry("a", "[2]", "[1,9]")}}`, 9),
    /misaligned: F32 at byte 1/,
  ],
];

describe("refuses", () => {
  test.each(table)("%s", async (_what, file, message) => {
    const path = write(file);
    const started = process.cpuUsage();
    const error = await readSafetensors(path).then(
      () => null,
      (thrown: unknown) => thrown,
    );
    expect(error).toBeInstanceOf(CheckpointError);
    expect((error as Error).message).toMatch(message);
    expect((error as Error).message).toContain(path);
    const { user, system } = process.cpuUsage(started);
    expect((user + system) / 1000).toBeLessThan(100);
  });
});

/** The peak of resident memory during `run`, above what was resident before. */
async function peakBytes(run: () => Promise<void>): Promise<number> {
  writeFileSync("/proc/self/clear_refs", "5"); // the peak starts again at the present value
  const before = process.memoryUsage.rss();
  await run();
  const peak = /VmHWM:\s+(\d+) kB/.exec(readFileSync("/proc/self/status", "utf8"))?.[1];
  return Number(peak) * 1024 - before;
}

async function expectRefused(path: string, message: RegExp): Promise<void> {
  const milliseconds: number[] = [];
  const bytes = await peakBytes(async () => {
    for (let i = 0; i < 3; i += 1) {
      const started = process.cpuUsage();
      await expect(readSafetensors(path)).rejects.toThrow(message);
      const { user, system } = process.cpuUsage(started);
      milliseconds.push((user + system) / 1000);
    }
  });
  expect(bytes).toBeLessThan(200_000_000);
  // Processor time, the best of three: about 40 ms on an idle machine. The bound is for a parser
  // that continues after the limit or becomes quadratic, which takes minutes. It is not for the
  // machine's speed.
  expect(Math.min(...milliseconds)).toBeLessThan(1000);
}

test("refuses a header of 100 MB and one byte before reading it", async () => {
  const path = writeSparse(rawFile("{}", 0, { length: 100_000_001n }), 200_000_000);
  await expectRefused(path, /100000001 bytes, more than the limit of 100000000/);
});

test("refuses 10^6 tensors of a 64 MB header", async () => {
  const entries = Array.from({ length: 1_000_000 }, (_, i) => entry(`tensor${i}`, "[0]", "[0,0]"));
  await expectRefused(write(rawFile(`{${entries.join(",")}}`)), /more than 100000 tensors/);
});

test("refuses 10^6 metadata keys", async () => {
  const pairs = Array.from({ length: 1_000_000 }, (_, i) => `"${i}":""`);
  await expectRefused(write(rawFile(metadata(`{${pairs.join(",")}}`))), /more than 100000 keys/);
});

test("refuses a name of 90 MB and a metadata value of 90 MB", async () => {
  const long = "x".repeat(90_000_000);
  await expectRefused(write(rawFile(`{"${long}":1}`)), /longer than 4096 bytes/);
  await expectRefused(write(rawFile(metadata(`{"a":"${long}"}`))), /longer than 4194304 bytes/);
});

test("the limit of the header can be set", async () => {
  const path = write(rawFile(good, 8));
  await expect(readSafetensors(path, { headerBytesLimit: 10 })).rejects.toThrow(/limit of 10/);
  expect((await readSafetensors(path)).tensors.size).toBe(1);
});

describe("accepts", () => {
  test("an empty file of tensors, padding, any order of keys, an unpadded header", async () => {
    expect((await readSafetensors(write(rawFile("{}")))).tensors.size).toBe(0);
    const text = `{ "b" : {"data_offsets":[8,12],"shape":[],"dtype":"F32"} ,\n${entry("a")}}   `;
    const { tensors } = await readSafetensors(write(rawFile(text, 12)));
    expect([...tensors.keys()]).toEqual(["b", "a"]);
    expect(tensors.get("b")).toMatchObject({ shape: [], byteLength: 4, dtype: "F32" });
    expect([...((await tensors.get("b")?.readBytes()) ?? [])]).toEqual([8, 9, 10, 11]);
  });

  test("escapes and every plane of Unicode in names and metadata", async () => {
    const text = `{"__metadata__":{"\\u00e9\\ud83d\\ude00":"\\"\\\\\\/\\n"},${entry("ключ/鍵/😀")}}`;
    const { tensors, metadata } = await readSafetensors(write(rawFile(text, 8)));
    expect([...tensors.keys()]).toEqual(["ключ/鍵/😀"]);
    expect([...metadata]).toEqual([["é😀", '"\\/\n']]);
  });

  test("a tensor without elements, also between others", async () => {
    const text = `{${entry("a")},${entry("none", "[0,4294967296]", "[8,8]")},${entry("b", "[2]", "[8,16]")}}`;
    const { tensors } = await readSafetensors(write(rawFile(text, 16)));
    expect(tensors.get("none")?.byteLength).toBe(0);
    expect((await tensors.get("none")?.readBytes())?.length).toBe(0);
  });
});
