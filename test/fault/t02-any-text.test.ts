// docs/faults.md, row T2: no text is lost, becomes a special token, or takes more than linear time.
// Cases are NUL, lone surrogates, invalid UTF-8, `</s>` in the middle, and a megabyte of one
// character.
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { DataError } from "../../lib/core/errors.js";
import { TokenDataset } from "../../lib/data/shards.js";
import { maxPartLength } from "../../lib/data/text-parts.js";
import { prepare } from "../../lib/prepare/prepare.js";
import {
  everyTokenizer,
  quickstart,
  temporaryFolder,
  tokenizerNames,
  writeFiles,
} from "../data/support.js";

const tokenizers = everyTokenizer();

/** Text of every kind: any code points, and words, white space and special tokens side by side. */
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

describe.each(tokenizerNames)("tokenizer %s", (name) => {
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

  it("writes U+FFFD for every lone surrogate, and for nothing else", async () => {
    const tokenizer = tokenizers[name];
    const text = "\udc00a\ud800b\ud83d\ude00\ud800\ud800\udc00\udfff";
    expect(tokenizer.decode(await tokenizer.encode(text))).toBe("\ufffda\ufffdb😀\ufffd𐀀\ufffd");
  });

  it("encodes text far longer than a part, cut anywhere, without loss", async () => {
    for (const unit of ["a", "😀", "word ", "line\n", " "]) {
      const text = unit.repeat(Math.ceil((3 * maxPartLength) / unit.length));
      expect(tokenizers[name].decode(await tokenizers[name].encode(text))).toBe(text);
    }
  });

  it("takes about sixteen times as long for sixteen times as much of one character", async () => {
    const tokenizer = tokenizers[name];
    /** The least processor time of several tries, on which a busy machine has little effect. */
    const cost = async (text: string, tries: number): Promise<number> => {
      let least = Number.POSITIVE_INFINITY;
      for (let i = 0; i < tries; i++) {
        const before = process.cpuUsage();
        await tokenizer.encode(text);
        const { user, system } = process.cpuUsage(before);
        least = Math.min(least, user + system);
      }
      return least;
    };
    const little = await cost("a".repeat(2 ** 16), 3);
    // A quadratic algorithm takes 256 times as long, a busy machine only a few times.
    expect((await cost("a".repeat(2 ** 20), 2)) / little).toBeLessThan(100);
  });
});

describe("prepare", () => {
  const bytes = (...parts: (string | number)[]) =>
    Buffer.concat(
      parts.map((part) => (typeof part === "string" ? Buffer.from(part) : Buffer.of(part))),
    );

  it("names file and byte of invalid UTF-8, or replaces it when told to, and only it", async () => {
    const folder = await temporaryFolder();
    const text = bytes("good \0 ", 0xff, " é ", 0xc3, " </s>");
    await writeFiles(join(folder, "in"), { "a.txt": text });
    const options = {
      inputs: [join(folder, "in")],
      out: join(folder, "out"),
      tokenizer: quickstart,
      validationFraction: 0,
    };
    const refused = prepare(options);
    await expect(refused).rejects.toThrow(DataError);
    await expect(refused).rejects.toThrow(/a\.txt: invalid UTF-8 at byte 7/);
    await prepare({ ...options, invalidUtf8: "replace" });
    const dataset = await TokenDataset.open(options.out, { sequenceLength: 1 });
    const ids: number[] = [];
    const window = new Int32Array(2);
    for (let i = 0; i < dataset.windows; i++) {
      await dataset.read(i, window);
      if (i === 0) ids.push(window[0] as number);
      ids.push(window[1] as number);
    }
    await dataset.close();
    const { quickstart: tokenizer } = tokenizers;
    // One end-of-text id: that after the document. The one spelled in the text is text.
    expect(ids.filter((id) => id === tokenizer.eosId)).toHaveLength(1);
    expect(ids.at(-1)).toBe(tokenizer.eosId);
    expect(tokenizer.decode(ids.slice(0, -1))).toBe("good \0 \ufffd é \ufffd </s>");
  });
});
