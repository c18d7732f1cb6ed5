import { readFile } from "node:fs/promises";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ArgumentError, TokenizerError } from "../../lib/core/errors.js";
import { splitText } from "../../lib/data/text-parts.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import {
  everyTokenizer,
  quickstart,
  temporaryFolder,
  tokenizerFolders,
  tokenizerNames,
  writeFiles,
} from "./support.js";

const tokenizers = everyTokenizer();

describe.each(tokenizerNames)("tokenizer %s", (name) => {
  it("recognizes special tokens and adds the ends when asked", async () => {
    const tokenizer = tokenizers[name];
    const eos = tokenizer.token(tokenizer.eosId);
    expect((await tokenizer.encode(eos, { specialTokens: "recognize" })).at(-1)).toBe(
      tokenizer.eosId,
    );
    const plain = [...(await tokenizer.encode("Hello"))];
    expect([...(await tokenizer.encode("Hello", { bos: true, eos: true }))]).toEqual([
      tokenizer.bosId,
      ...plain,
      tokenizer.eosId,
    ]);
    const ids = [...plain, tokenizer.eosId];
    expect(tokenizer.decode(ids)).toBe("Hello");
    expect(tokenizer.decode(ids, { specialTokens: "keep" })).toBe(`Hello${eos}`);
  });

  it("refuses ids outside the vocabulary", () => {
    const tokenizer = tokenizers[name];
    for (const id of [-1, tokenizer.vocabSize, 0.5, Number.NaN]) {
      expect(() => tokenizer.decode([id])).toThrow(TokenizerError);
    }
  });

  it("tells the bytes that each token adds within a text", async () => {
    const tokenizer = tokenizers[name];
    const text = "Hello, wörld! 😀 two  spaces\n";
    const ids = [...(await tokenizer.encode(`${text}${text}`))];
    const bytes = Buffer.concat(ids.map((id) => tokenizer.tokenBytes(id)));
    // The text's first token may have the space in front of it that the encoder puts there.
    expect(bytes.toString("utf8").replace(/^ /, "")).toBe(`${text}${text}`);
    expect(Buffer.from(tokenizer.tokenBytes(tokenizer.eosId)).toString()).toBe(
      tokenizer.token(tokenizer.eosId),
    );
    for (const id of [-1, tokenizer.vocabSize, 0.5]) {
      expect(() => tokenizer.tokenBytes(id)).toThrow(ArgumentError);
    }
  });

  it("copies itself", async () => {
    const folder = await temporaryFolder();
    await tokenizers[name].copyTo(folder);
    const copy = await Tokenizer.load(folder);
    expect(copy.sha256).toBe(tokenizers[name].sha256);
    expect([copy.eosId, copy.bosId]).toEqual([tokenizers[name].eosId, tokenizers[name].bosId]);
  });
});

describe("tokenizer", () => {
  it("holds a character back until its last byte has come", () => {
    const { quickstart: tokenizer } = tokenizers;
    const stream = tokenizer.decodeStream();
    const byte = (value: number): number => 3 + value; // <0x00> has id 3
    const pushed = [0x41, 0xf0, 0x9f, 0x98, 0x80, 0xc3, 0xa9].map((value) =>
      stream.push(byte(value)),
    );
    expect(pushed).toEqual(["A", "", "", "", "😀", "", "é"]);
    // A broken byte alone is replaced. Its valid neighbors stay.
    expect(stream.push(byte(0xff)) + stream.push(byte(0xc3)) + stream.push(byte(0x41))).toBe(
      "\ufffd\ufffdA",
    );
    expect(stream.push(byte(0xe2)) + stream.end()).toBe("\ufffd");
  });

  it("knows the quickstart's vocabulary", () => {
    const { quickstart: tokenizer } = tokenizers;
    expect([tokenizer.vocabSize, tokenizer.bosId, tokenizer.eosId]).toEqual([4096, 1, 2]);
    expect(tokenizer.token(0x0a + 3)).toBe("<0x0A>");
  });

  it("ignores the truncation that a tokenizer.json asks for", async () => {
    const { json } = {
      json: await readFile(join(tokenizerFolders.llama2, "tokenizer.json"), "utf8"),
    };
    expect(json).toContain('"max_length": 8');
    expect((await tokenizers.llama2.encode("one ".repeat(100))).length).toBeGreaterThan(100);
  });

  it("refuses what is no string", async () => {
    await expect(tokenizers.quickstart.encodeBatch(["a", 5 as never])).rejects.toThrow(
      ArgumentError,
    );
  });

  it("splits long text at line breaks, then spaces, then between characters", () => {
    fc.assert(
      fc.property(
        fc.array(fc.constantFrom("a", "bc", " ", "\n", "\n\n", "😀"), { maxLength: 80 }),
        fc.integer({ min: 2, max: 30 }),
        (pieces, limit) => {
          const text = pieces.join("");
          const parts = splitText(text, limit);
          expect(parts.join("")).toBe(text);
          for (const part of parts) {
            expect(part.length).toBeLessThanOrEqual(limit);
            expect(Buffer.from(part).toString()).toBe(part); // no half of a surrogate pair
          }
        },
      ),
    );
    expect(splitText("ab cd\nefgh ij", 8)).toEqual(["ab cd\n", "efgh ij"]);
    expect(splitText("ab cd efgh ij", 8)).toEqual(["ab cd", " efgh ij"]);
    expect(splitText("abcdefghijklm", 8)).toEqual(["abcdefgh", "ijklm"]);
  });
});

it("has ids without a token, which no text gives and which decode to nothing", async () => {
  const folder = await temporaryFolder();
  const json = JSON.parse(await readFile(join(quickstart, "tokenizer.json"), "utf8"));
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false };
  json.added_tokens.push({ id: 4096, content: "<|end|>", special: true, ...flags });
  json.model.vocab["<|end|>"] = 4100;
  json.added_tokens.at(-1).id = 4100;
  await writeFiles(folder, { "tokenizer.json": JSON.stringify(json) });
  const tokenizer = await Tokenizer.load(folder);
  expect(tokenizer.vocabSize).toBe(4101);
  expect([...tokenizer.gaps]).toEqual([4096, 4097, 4098, 4099]);
  const ids = [...(await tokenizer.encode("peace<|end|>", { specialTokens: "recognize" }))];
  expect(ids.at(-1)).toBe(4100);
  const decoded = tokenizer.decode([...ids.slice(0, -1), 4097, 4100], { specialTokens: "keep" });
  expect(decoded).toBe("peace<|end|>");
  expect(tokenizer.token(4097)).toBe("<no token 4097>");
});

it("says how to convert a sentencepiece model", async () => {
  const folder = await temporaryFolder();
  await writeFiles(folder, { "tokenizer.model": "" });
  const refused = Tokenizer.load(folder);
  await expect(refused).rejects.toThrow(TokenizerError);
  await expect(refused).rejects.toThrow(
    /tokenizer\.model.*Convert it: python3 -c .*save_pretrained/,
  );
});
