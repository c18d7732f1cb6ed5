import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import fc from "fast-check";
import { beforeAll, describe, expect, it } from "vitest";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { fixtures, temporaryFolder, writeFiles } from "./support.js";

// Ids become the text that the `tokenizers` package makes of them, for every decoder, as a whole
// and part by part.

const { Tokenizer: Package } = createRequire(import.meta.url)(
  "tokenizers",
) as typeof import("tokenizers");

interface Json {
  // biome-ignore lint/suspicious/noExplicitAny: tests change every part of it
  [field: string]: any;
}

let llama2: Json;
let byteLevel: Json;
beforeAll(async () => {
  const read = async (name: string) =>
    JSON.parse(await readFile(join(fixtures, name, "tokenizer.json"), "utf8")) as Json;
  llama2 = await read("llama2");
  byteLevel = await read("byte-level");
  for (const json of [llama2, byteLevel]) json.truncation = null;
});

/** Our tokenizer and the package's, from one file. */
async function both(json: Json, config: object = { eos_token: "</s>" }) {
  const text = JSON.stringify(json);
  const folder = await temporaryFolder();
  await writeFiles(folder, {
    "tokenizer.json": text,
    "tokenizer_config.json": JSON.stringify(config),
  });
  return { ours: await Tokenizer.load(folder), theirs: Package.fromString(text) };
}

const added = (id: number, content: string, special = false) => ({
  id,
  content,
  special,
  single_word: false,
  lstrip: false,
  rstrip: false,
  normalized: false,
});
const sequence = (...decoders: object[]) => ({ type: "Sequence", decoders });
const spaces = { type: "Replace", pattern: { String: "▁" }, content: " " };
const bytes = { type: "ByteFallback" };
const fuse = { type: "Fuse" };
const strip = (content: string, start: number, stop: number) => ({
  type: "Strip",
  content,
  start,
  stop,
});
const metaspace = (prepend_scheme: string) => ({
  type: "Metaspace",
  replacement: "▁",
  prepend_scheme,
  split: false,
});

const decoders: [string, object][] = [
  ["Llama 2", sequence(spaces, bytes, fuse, strip(" ", 1, 0))],
  ["Gemma", sequence(spaces, bytes, fuse)],
  ["Metaspace", metaspace("always")],
  ["Metaspace, first", sequence(metaspace("first"), bytes, fuse)],
  ["Metaspace, never", sequence(metaspace("never"), bytes)],
  ["Metaspace behind Fuse", sequence(bytes, fuse, metaspace("always"))],
  ["Metaspace behind ByteFallback", sequence(bytes, metaspace("always"))],
  ["Strip of each token", sequence(bytes, spaces, strip(" ", 1, 0))],
  ["Strip at both ends", sequence(spaces, bytes, fuse, strip("e", 2, 0), strip("▁", 3, 0))],
  [
    "Replace over tokens",
    sequence(spaces, bytes, fuse, { type: "Replace", pattern: { String: "e t" }, content: "<→>" }),
  ],
  ["nothing but Fuse", fuse],
  ["an empty Sequence", sequence()],
];

/** Whether two texts are equal, apart from the number of U+FFFD for broken bytes. */
function expectSameText(ours: string, theirs: string) {
  if (ours.includes("\ufffd") && theirs.includes("\ufffd")) return;
  expect(ours).toBe(theirs);
}

async function expectSameAs({ ours, theirs }: Awaited<ReturnType<typeof both>>, least = 0) {
  const id = fc.integer({ min: least, max: ours.vocabSize - 1 });
  const lists = fc.oneof(
    fc.array(id, { maxLength: 12 }),
    // Byte tokens of whole characters, between other tokens.
    fc
      .array(
        fc.oneof(
          id.map((one) => [one]),
          fc.constantFrom("é", "😀", "▁", " ", "e").map((character) => byteIds(ours, character)),
        ),
        { maxLength: 8 },
      )
      .map((parts) => parts.flat()),
  );
  await fc.assert(
    fc.asyncProperty(lists, fc.boolean(), async (ids, skip) => {
      const specialTokens = skip ? "skip" : "keep";
      const text = ours.decode(ids, { specialTokens });
      expectSameText(text, await theirs.decode(ids, skip));
      const stream = ours.decodeStream({ specialTokens });
      expect(ids.map((one) => stream.push(one)).join("") + stream.end()).toBe(text);
    }),
    { numRuns: 150 },
  );
}

function byteIds(tokenizer: Tokenizer, character: string): number[] {
  const names = [...Buffer.from(character)].map(
    (byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`,
  );
  const ids = Array.from({ length: tokenizer.vocabSize }, (_, id) => id);
  const found = names.map((name) => ids.find((id) => tokenizer.token(id) === name));
  return found.filter((id) => id !== undefined);
}

describe("decodes as the tokenizers package does", () => {
  it.each(decoders)("%s", async (_, decoder) => {
    await expectSameAs(await both({ ...llama2, decoder }));
  });

  it("ByteLevel", async () => {
    await expectSameAs(await both(byteLevel, { eos_token: "<|end_of_text|>" }));
  });

  it("added tokens that are not special, as Gemma 3 has them", async () => {
    const json = structuredClone(llama2);
    json.decoder = sequence(spaces, bytes, fuse);
    json.normalizer = { type: "Replace", pattern: { String: " " }, content: "▁" };
    json.model.vocab["▁▁▁"] = 600;
    json.added_tokens.push(added(600, "▁▁▁"), added(601, "\n\n"), added(602, "<a▁b>"));
    const pair = await both(json);
    await expectSameAs(pair, 590);
    const e = json.model.vocab.e as number;
    expect(pair.ours.decode([e, 600, e, 601])).toBe("e   e\n\n");
  });

  it("but for an added token that its alphabet does not spell: text comes back", async () => {
    const json = structuredClone(byteLevel);
    json.added_tokens.push(added(603, "éé"), added(604, "éĠ"));
    const { ours } = await both(json, { eos_token: "<|end_of_text|>" });
    for (const text of ["caféé", "a éĠ b", "été"]) {
      expect(ours.decode(await ours.encode(text))).toBe(text);
    }
  });
});

describe("a stream", () => {
  it("shows text once it is final, and spaces before a word though a beginning has none", async () => {
    const { ours } = await both({ ...llama2, decoder: decoders[0]?.[1] });
    const ids = await ours.encode("the the");
    const stream = ours.decodeStream();
    expect([...ids].map((id) => stream.push(id)).filter(Boolean)).toEqual(["the", " the"]);
  });

  it("holds back what may have to go at the end", async () => {
    const decoder = sequence(spaces, bytes, fuse, strip("e", 0, 2));
    const { ours } = await both({ ...llama2, decoder });
    const e = llama2.model.vocab.e as number;
    const stream = ours.decodeStream();
    expect([e, e, e, e].map((id) => stream.push(id))).toEqual(["", "", "e", "e"]);
    expect(stream.end()).toBe("");
    const other = ours.decodeStream();
    expect([e, e, llama2.model.vocab.t].map((id) => other.push(id as number))).toEqual([
      "",
      "",
      "eet",
    ]);
  });
});
