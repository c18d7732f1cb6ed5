// The fuzz entry of the parser, with sanitizers, over its corpus and a few thousand mutations of
// it. Long runs are made with libFuzzer; see csrc/fuzz/safetensors_fuzz.cpp.
import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { temporaryFolder } from "../checkpoint/support/harness.js";

const corpus = "csrc/fuzz/safetensors_corpus";
const letters = Buffer.from('{}[]",:0123456789\\ue-. ');

/** A small random generator with a fixed seed, so that failures can be repeated. */
function random(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

function mutate(original: Buffer, below: (n: number) => number): Buffer {
  let bytes = Buffer.from(original);
  for (let change = below(4); change >= 0; change -= 1) {
    const at = below(bytes.length);
    const kind = below(5);
    if (kind === 0) bytes[at] = below(256);
    if (kind === 1) bytes[at] = letters[below(letters.length)] ?? 0;
    if (kind === 2 && bytes.length > 12) {
      bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + 1 + below(4))]);
    }
    if (kind === 3)
      bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(below(bytes.length))]);
    if (kind === 4) bytes = Buffer.concat([bytes, Buffer.alloc(below(9))]);
  }
  // The length is right, because most mutations would end at the first check otherwise.
  const end = bytes.lastIndexOf("}");
  if (end >= 8 && below(3) > 0) bytes.writeBigUInt64LE(BigInt(end + 1 - 8), 0);
  return bytes;
}

test("no input breaks the parser's promises", () => {
  const { path, remove } = temporaryFolder();
  const driver = join(path, "driver");
  const sources = [
    "safetensors",
    "safetensors_header",
    "header_text",
    "regular_file",
    "file_error",
  ].map((name) => `csrc/io/${name}.cpp`);
  execFileSync("g++", [
    ...[
      "-std=c++20",
      "-g",
      "-O1",
      "-fsanitize=address,undefined",
      "-fno-sanitize-recover=all",
      "-Icsrc",
    ],
    ...["csrc/fuzz/safetensors_fuzz.cpp", ...sources, "-o", driver],
  ]);
  const seeds = readdirSync(corpus).map((name) => readFileSync(join(corpus, name)));
  const inputs = join(path, "inputs");
  mkdirSync(inputs);
  const below = random(20);
  for (let i = 0; i < 3000; i += 1) {
    const seed = seeds[below(seeds.length)] ?? Buffer.alloc(8);
    writeFileSync(join(inputs, `${i}`.padStart(4, "0")), mutate(seed, below));
  }
  const files = [...readdirSync(corpus).map((name) => join(corpus, name))];
  files.push(...readdirSync(inputs).map((name) => join(inputs, name)));
  expect(execFileSync(driver, files, { encoding: "utf8" })).toBe(
    `${files.length} files, no promise broken\n`,
  );
  remove();
}, 300_000);
