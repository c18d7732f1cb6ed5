import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import fc from "fast-check";
import { beforeAll, describe, expect, it } from "vitest";
import { maxPartLength, splitText } from "../../lib/data/text-parts.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { ArgumentError, TokenizerError } from "../../lib/errors.js";
import { addresses, fixtures, quickstart, temporaryFolder } from "./support.js";

const folders = {
  quickstart,
  llama2: join(fixtures, "llama2"),
  "byte-level": join(fixtures, "byte-level"),
};
type Name = keyof typeof folders;
const names = Object.keys(folders) as Name[];
const tokenizers = {} as Record<Name, Tokenizer>;
let texts: string[];

beforeAll(async () => {
  for (const name of names) tokenizers[name] = await Tokenizer.load(folders[name]);
  texts = JSON.parse(await readFile(join(fixtures, "texts.json"), "utf8")) as string[];
});

/** Text of every kind: any code points, and words, white space and special tokens that meet at odd places. */
const anyText = fc.oneof(
  fc.string({ unit: "binary", maxLength: 60 }),
  fc.string({ unit: "grapheme", maxLength: 60 }),
  fc
    .array(
      fc.constantFrom(
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\0",
        "</s>",
        "<s>",
        "<unk>",
        "<0x0A>",
        "<|end_of_text|>",
        "word",
        "Word",
        "1234",
        "é",
        "😀",
        "\ufffd",
        "\ufeff",
        "▁",
        "'s",
        ";\n",
        "    ",
        "e\u0301",
        "𝒳",
        "</",
        "s>",
      ),
      { maxLength: 25 },
    )
    .map((parts) => parts.join("")),
);

describe.each(names)("tokenizer %s", (name) => {
  it("gives the ids of Hugging Face's own package", async () => {
    const golden = JSON.parse(await readFile(join(fixtures, `${name}.ids.json`), "utf8")) as {
      ids: number[][];
      long: { file: string; count: number; sha256: string };
    };
    const ids = await tokenizers[name].encodeBatch(texts);
    expect(ids.map((list) => [...list])).toEqual(golden.ids);
    // Longer than a part: the cuts change nothing.
    const long = await readFile(join(addresses, golden.long.file), "utf8");
    expect(long.length).toBeGreaterThan(maxPartLength);
    const longIds = await tokenizers[name].encode(long);
    expect(longIds.length).toBe(golden.long.count);
    expect(createHash("sha256").update(longIds).digest("hex")).toBe(golden.long.sha256);
  });

  it("gives every text back, whole and streamed", async () => {
    const tokenizer = tokenizers[name];
    await fc.assert(
      fc.asyncProperty(anyText, async (text) => {
        // Metaspace tokenizers write a space and "▁" alike.
        const expected = name === "llama2" ? text.replaceAll("▁", " ") : text;
        const ids = await tokenizer.encode(text);
        expect(tokenizer.decode(ids)).toBe(expected);
        const stream = tokenizer.decodeStream();
        expect([...ids].map((id) => stream.push(id)).join("") + stream.end()).toBe(expected);
      }),
      { numRuns: 300 },
    );
  });

  it("never makes a special id out of text", async () => {
    const tokenizer = tokenizers[name];
    const special = new Set<number>();
    for (const token of ["<unk>", "<s>", "</s>", "<|begin_of_text|>", "<|end_of_text|>"]) {
      const [id, ...more] = await tokenizer.encode(token, { specialTokens: "recognize" });
      if (id !== undefined && more.length === 0) special.add(id);
    }
    expect(special).toContain(tokenizer.eosId);
    await fc.assert(
      fc.asyncProperty(anyText, async (text) => {
        const ids = await tokenizer.encode(text);
        expect([...ids].filter((id) => special.has(id))).toEqual([]);
      }),
      { numRuns: 200 },
    );
  });

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

  it("writes U+FFFD for a lone surrogate", async () => {
    const ids = await tokenizers[name].encode("a\ud800b");
    expect(tokenizers[name].decode(ids)).toBe("a\ufffdb");
  });

  it("encodes text far longer than a part, cut anywhere, without loss", async () => {
    for (const unit of ["a", "😀", "word ", "line\n", " "]) {
      const text = unit.repeat(Math.ceil((3 * maxPartLength) / unit.length));
      expect(tokenizers[name].decode(await tokenizers[name].encode(text))).toBe(text);
    }
  });

  it("refuses ids outside the vocabulary", () => {
    const tokenizer = tokenizers[name];
    for (const id of [-1, tokenizer.vocabSize, 0.5, Number.NaN]) {
      expect(() => tokenizer.decode([id])).toThrow(TokenizerError);
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
    // A broken byte is replaced alone; what is valid beside it stays.
    expect(stream.push(byte(0xff)) + stream.push(byte(0xc3)) + stream.push(byte(0x41))).toBe(
      "\ufffd\ufffdA",
    );
    expect(stream.push(byte(0xe2)) + stream.end()).toBe("\ufffd");
  });

  it("encodes a megabyte of one character in about a second", async () => {
    for (const character of ["a", " ", "\0", "Z"]) {
      const before = process.cpuUsage();
      await tokenizers.quickstart.encode(character.repeat(2 ** 20));
      const { user, system } = process.cpuUsage(before);
      // Processor time, as the machine may be busy with something else; a quadratic encoder takes minutes.
      expect((user + system) / 1e6).toBeLessThan(4);
    }
  });

  it("knows the quickstart's vocabulary", () => {
    const { quickstart: tokenizer } = tokenizers;
    expect([tokenizer.vocabSize, tokenizer.bosId, tokenizer.eosId]).toEqual([4096, 1, 2]);
    expect(tokenizer.token(0x0a + 3)).toBe("<0x0A>");
  });

  it("ignores the truncation that a tokenizer.json asks for", async () => {
    const { json } = { json: await readFile(join(folders.llama2, "tokenizer.json"), "utf8") };
    expect(json).toContain('"max_length": 8');
    expect((await tokenizers.llama2.encode("one ".repeat(100))).length).toBeGreaterThan(100);
  });

  it("says whether it fits a model", () => {
    const { quickstart: tokenizer } = tokenizers;
    expect(() => tokenizer.assertFits({ vocabSize: 4096, bosId: 1, eosId: 2 })).not.toThrow();
    expect(() => tokenizer.assertFits({ vocabSize: 4224, bosId: null })).not.toThrow();
    expect(() => tokenizer.assertFits({ vocabSize: 4000 })).toThrow(
      /vocabSize: .*4095, the model 4000/,
    );
    expect(() => tokenizer.assertFits({ vocabSize: 4096, eosId: 1 })).toThrow(
      /eosId: it has 2, the model 1/,
    );
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
