// docs/faults.md, row T3: ids equal those of the reference implementation, Hugging Face's package
// for Python, for three kinds of tokenizer. test/data/fixtures/make.py made the fixtures.
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { maxPartLength } from "../../lib/data/text-parts.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { addresses, fixtures, quickstart } from "../data/support.js";

it.each([
  ["quickstart", quickstart],
  ["llama2", join(fixtures, "llama2")],
  ["byte-level", join(fixtures, "byte-level")],
])("tokenizer %s", async (name, folder) => {
  const tokenizer = await Tokenizer.load(folder);
  const texts = JSON.parse(await readFile(join(fixtures, "texts.json"), "utf8")) as string[];
  const golden = JSON.parse(await readFile(join(fixtures, `${name}.ids.json`), "utf8")) as {
    ids: number[][];
    long: { file: string; count: number; sha256: string };
  };
  const ids = await tokenizer.encodeBatch(texts);
  expect(ids.map((list) => [...list])).toEqual(golden.ids);
  // The text is longer than a part. The cuts change nothing.
  const long = await readFile(join(addresses, golden.long.file), "utf8");
  expect(long.length).toBeGreaterThan(maxPartLength);
  const longIds = await tokenizer.encode(long);
  expect(longIds.length).toBe(golden.long.count);
  expect(createHash("sha256").update(longIds).digest("hex")).toBe(golden.long.sha256);
});
