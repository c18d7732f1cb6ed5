import { readFileSync } from "node:fs";
import { copyFile, readdir, readFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ArgumentError, DataError, UsageError } from "../../lib/core/errors.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { byteLevelAlphabet } from "../../lib/data/tokenizer-json.js";
import { prepare } from "../../lib/prepare/prepare.js";
import { byteLevel } from "../../lib/prepare/tokenizer/alphabet.js";
import { wordAdder } from "../../lib/prepare/tokenizer/count-words.js";
import { learnMerges } from "../../lib/prepare/tokenizer/learn-merges.js";
import { splitRuleNames, splitRules } from "../../lib/prepare/tokenizer/split-rules.js";
import {
  type TrainTokenizerOptions,
  trainTokenizer,
} from "../../lib/prepare/tokenizer/train-tokenizer.js";
import { WordCounts } from "../../lib/prepare/tokenizer/word-counts.js";
import { addresses, fixtures, temporaryFolder, writeFiles } from "./support.js";

// The trainer and the splitting rules are compared with Hugging Face's own: with what Python's made
// (scripts/make_bpe.py), and with what the npm package makes here.

interface Golden {
  texts: string[];
  cases: {
    options: Partial<TrainTokenizerOptions>;
    tokens: string[];
    merges: [string, string][];
  }[];
}
const golden = JSON.parse(readFileSync(join(fixtures, "bpe.json"), "utf8")) as Golden;
const lines = (texts: readonly string[]) =>
  texts.map((text) => `${JSON.stringify({ text })}\n`).join("");

interface TrainerOfPackage {
  setPreTokenizer(preTokenizer: unknown): void;
  train(files: string[]): void;
  save(path: string): void;
}
const huggingFace = createRequire(import.meta.url)("tokenizers") as {
  BPE: { empty(): unknown };
  Tokenizer: new (model: unknown) => TrainerOfPackage;
  byteLevelPreTokenizer(prefix: boolean, regex?: boolean): unknown;
};

const modelOf = async (folder: string) => {
  const { model } = JSON.parse(await readFile(join(folder, "tokenizer.json"), "utf8"));
  const vocab = Object.entries(model.vocab as Record<string, number>);
  const tokens = vocab.sort(([, a], [, b]) => a - b).map(([token]) => token);
  return { tokens, merges: model.merges as [string, string][] };
};

describe("merges", () => {
  it.each(golden.cases)("equal Python's for $options", async ({ options, tokens, merges }) => {
    const folder = await writeFiles(await temporaryFolder(), { "a.jsonl": lines(golden.texts) });
    const out = join(folder, "tokenizer");
    const inputs = [join(folder, "a.jsonl")];
    const result = await trainTokenizer({ ...options, inputs, out });
    expect(await modelOf(out)).toEqual({ tokens, merges });
    expect(result).toMatchObject({ documents: golden.texts.length, merges: merges.length });
    const warning = /the text yields only \d+ tokens/;
    if (tokens.length < (options.vocabSize as number)) expect(result.warnings[0]).toMatch(warning);
    else expect(result.warnings).toEqual([]);
    const texts = [...golden.texts, "ꙮ new ✂ signs\u{1f9ff}"];
    const ids = await result.tokenizer.encodeBatch(texts);
    expect(ids.map((list) => result.tokenizer.decode(list))).toEqual(texts);
  });

  it("of a real text equal those that the npm package learns here", async () => {
    const folder = await temporaryFolder();
    const file = join(folder, "text.txt");
    const [name] = (await readdir(addresses)).filter((one) => one.endsWith(".txt")).sort();
    await copyFile(join(addresses, name as string), file);
    // The package's trainer takes a file by lines, has 30,000 tokens, and merges pairs that occur once.
    const { BPE, Tokenizer: Package, byteLevelPreTokenizer } = huggingFace;
    const theirs = new Package(BPE.empty());
    theirs.setPreTokenizer(byteLevelPreTokenizer(false));
    theirs.train([file]);
    theirs.save(join(folder, "tokenizer.json"));
    const text = await readFile(file, "utf8");
    const counts = new WordCounts();
    const add = wordAdder(counts, "gpt2");
    for (const line of text.match(/[^\n]*\n|[^\n]+$/g) ?? []) add(line);
    const { tokens, words } = byteLevel([], counts);
    const merges = await learnMerges(words, {
      tokens,
      reserved: new Set(),
      vocabSize: 30_000,
      minFrequency: 1,
      maxTokenLength: Number.POSITIVE_INFINITY,
    });
    const expected = (await modelOf(folder)).merges;
    expect(expected.length).toBeGreaterThan(1000);
    expect(merges.map((pair) => pair.map((id) => tokens[id]))).toEqual(expected);
  });

  it("never make a special token, which a text may spell", async () => {
    const text = "abcd ".repeat(500);
    const folder = await writeFiles(await temporaryFolder(), { "a.txt": text });
    const out = join(folder, "t");
    const special = { specialTokens: ["abcd"], vocabSize: 300 };
    const { tokenizer } = await trainTokenizer({
      inputs: [join(folder, "a.txt")],
      out,
      ...special,
    });
    expect((await modelOf(out)).merges.map((pair) => pair.join(""))).not.toContain("abcd");
    expect([...(await tokenizer.encode("abcd"))]).not.toContain(2);
    expect([...(await tokenizer.encode("abcd", { specialTokens: "recognize" }))]).toEqual([2]);
  });
});

it.each(splitRuleNames)("the rule %s cuts texts as the package does", async (rule) => {
  // In the package's tokenizer each whole word is a token.
  const samples = [
    ...golden.texts,
    ...fc.sample(fc.string({ unit: "grapheme", maxLength: 60 }), { seed: 5, numRuns: 300 }),
    ...fc.sample(
      fc
        .array(
          fc.constantFrom(
            ..."'sS\u017ftTrReEvVmMlLdD aé1٣½ \t\r\n\u0085\u00a0\u2003\ufeff\u200b.,-_я中\u0301😀",
          ),
          { maxLength: 40 },
        )
        .map((characters) => characters.join("")),
      { seed: 6, numRuns: 2000 },
    ),
  ].filter((text) => !/\p{Cs}/u.test(text));
  const split = { type: "Split", pattern: { Regex: splitRules[rule].written } };
  const whole = new Set<string>();
  const ours = samples.map((text) => {
    const words: string[] = [];
    const expression = new RegExp(splitRules[rule].expression, "uy");
    for (let from = 0; expression.test(text); from = expression.lastIndex) {
      words.push(text.slice(from, expression.lastIndex));
    }
    expect(words.join("")).toBe(text);
    for (const word of words) whole.add(word);
    return words;
  });
  const vocab = Object.fromEntries([...whole].map((word, id) => [word, id]));
  const json = {
    version: "1.0",
    added_tokens: [],
    pre_tokenizer: { ...split, behavior: "Isolated", invert: false },
    model: { type: "WordLevel", vocab: { ...vocab, "[other]": whole.size }, unk_token: "[other]" },
  };
  const { Tokenizer: Package } = createRequire(import.meta.url)("tokenizers") as {
    Tokenizer: {
      fromString(json: string): {
        encodeBatch(texts: string[], options: object): Promise<{ getTokens(): string[] }[]>;
      };
    };
  };
  const loaded = Package.fromString(JSON.stringify(json));
  const theirs = await loaded.encodeBatch(samples, { addSpecialTokens: false });
  expect(theirs.map((encoding) => encoding.getTokens())).toEqual(ours);
});

describe("the words", () => {
  it("are counted exactly, whatever their length and script", () => {
    const words = new WordCounts();
    const expected = new Map<string, number>();
    const random = fc.sample(fc.string({ unit: "grapheme", maxLength: 8 }), {
      seed: 1,
      numRuns: 4000,
    });
    for (const word of [...random, ...random.slice(0, 999), "x".repeat(10_000)]) {
      if (word === "") continue;
      words.add(`ab${word}c`, 2, 2 + word.length);
      expected.set(word, (expected.get(word) ?? 0) + 1);
    }
    expect(new Map(words.entries())).toEqual(expected);
    expect(words.dropped).toBe(0);
  });

  it("stay within their limits: the rarest go first", () => {
    const words = new WordCounts({ words: 100, units: 2 ** 20 });
    for (let round = 0; round < 200; round++) {
      for (const word of ["often", "always"]) words.add(word, 0, word.length);
      for (let at = 0; at < 10; at++) {
        const word = `rare ${round} ${at}`;
        words.add(word, 0, word.length);
      }
    }
    expect(words.size).toBeLessThanOrEqual(100);
    expect(words.dropped).toBeGreaterThan(0);
    const counts = new Map(words.entries());
    expect([counts.get("often"), counts.get("always")]).toEqual([200, 200]);
  });

  it("of many different lengths stay within their room", () => {
    const words = new WordCounts({ words: 1e6, units: 10_000 });
    for (let at = 0; at < 300; at++) {
      const word = `${at}`.padStart(100, "x");
      words.add(word, 0, word.length);
    }
    const length = [...words.entries()].reduce((sum, [word]) => sum + word.length, 0);
    expect(length).toBeLessThanOrEqual(10_000);
  });
});

describe("a trained tokenizer", () => {
  it("is equal byte for byte when it is trained again, and reads what prepare reads", async () => {
    const half = golden.texts.length >> 1;
    const folder = await writeFiles(await temporaryFolder(), {
      "a/one.jsonl": lines(golden.texts.slice(0, half)),
      "a/two.jsonl.gz": gzipSync(lines(golden.texts.slice(half))),
      "b/notes.md": golden.texts.join("\n"),
    });
    const run = async (out: string) => {
      const inputs = [
        "a",
        "b",
        join(fixtures, "records.jsonl.zst"),
        join(fixtures, "pages-v1.parquet"),
      ];
      const options = { vocabSize: 600, out: join(folder, out), badRecords: "skip" as const };
      const paths = inputs.map((path) => (path.startsWith("/") ? path : join(folder, path)));
      const { documents, textBytes } = await trainTokenizer({ ...options, inputs: paths });
      expect(documents).toBeGreaterThan(golden.texts.length + 200);
      expect(textBytes).toBeGreaterThan(0);
      return await Promise.all(
        ["tokenizer.json", "tokenizer_config.json"].map((name) =>
          readFile(join(folder, out, name)),
        ),
      );
    };
    expect(await run("first")).toEqual(await run("second"));
  });

  it("serves prepare at once, with its special tokens", async () => {
    const folder = await writeFiles(await temporaryFolder(), { "a.jsonl": lines(golden.texts) });
    const names = {
      bos: "<|begin|>",
      eos: "<|end|>",
      specialTokens: ["<|im_start|>", "<|im_end|>"],
    };
    const inputs = [join(folder, "a.jsonl")];
    const tokenizer = join(folder, "t");
    await trainTokenizer({ inputs, out: tokenizer, vocabSize: 500, ...names });
    const loaded = await Tokenizer.load(tokenizer);
    expect([loaded.bosId, loaded.eosId, loaded.vocabSize]).toEqual([0, 1, 500]);
    expect([2, 3].every((id) => loaded.isSpecial(id))).toBe(true);
    const { dataset } = await prepare({ inputs, tokenizer, out: join(folder, "d") });
    expect(dataset).toMatchObject({ vocabSize: 500, eosId: 1 });
  });

  it("stays as it is unless overwrite is given", async () => {
    const folder = await writeFiles(await temporaryFolder(), { "a.txt": "some text\n" });
    const options = { inputs: [join(folder, "a.txt")], out: join(folder, "t"), vocabSize: 300 };
    await trainTokenizer(options);
    await expect(trainTokenizer(options)).rejects.toThrow(/tokenizer.json exists.*overwrite/);
    await expect(trainTokenizer(options)).rejects.toThrow(UsageError);
    await trainTokenizer({ ...options, overwrite: true });
  });
});

describe("wrong input", () => {
  it.each<[Partial<TrainTokenizerOptions>, RegExp, new (message: string) => Error]>([
    [
      { vocabSize: 257 },
      /no room for 2 special tokens and 256 bytes.* at least 258/,
      ArgumentError,
    ],
    [
      { vocabSize: 300, type: "byte-fallback" },
      /no room for 2 special tokens, 256 bytes and \d+ characters.*characterCoverage/,
      ArgumentError,
    ],
    [{ characterCoverage: 0.9 }, /characterCoverage needs type: "byte-fallback"/, ArgumentError],
    [{ specialTokens: ["<s>"] }, /"<s>": is named twice/, ArgumentError],
    [{ specialTokens: ["é"] }, /one character is text/, ArgumentError],
    [{ type: "byte-fallback", eos: "<0x0A>" }, /"<0x0A>": stands for a byte/, ArgumentError],
    [{ inputs: [] }, /at least one/, ArgumentError],
    [{ inputs: ["nowhere"] }, /nowhere: there is none/, DataError],
    [{ vocabSize: 1 }, /vocabSize/, ArgumentError],
    [{ rule: "mine" as "gpt2" }, /one of llama3, qwen2, gpt2 for rule.*"mine"/, ArgumentError],
  ])("%o is refused", async (options, message, type) => {
    const folder = await writeFiles(await temporaryFolder(), { "a.txt": "some text\n" });
    const given = { inputs: [join(folder, "a.txt")], out: join(folder, "t"), ...options };
    await expect(trainTokenizer(given)).rejects.toThrow(message);
    await expect(trainTokenizer(given)).rejects.toThrow(type);
  });

  it("chats, a text field of texts and files without text are refused", async () => {
    const folder = await writeFiles(await temporaryFolder(), { "a.txt": "text", "b.txt": "" });
    const run = (input: TrainTokenizerOptions["inputs"][number]) =>
      trainTokenizer({ inputs: [input], out: join(folder, "t"), vocabSize: 300 });
    const path = join(folder, "a.txt");
    await expect(run({ path, kind: "chat" })).rejects.toThrow(/kind: "chat" needs a tokenizer/);
    await expect(run({ path, textField: "body" })).rejects.toThrow(
      /textField: "body" needs records/,
    );
    await expect(run(join(folder, "b.txt"))).rejects.toThrow(/no text in/);
    await writeFile(join(folder, "file"), "");
    const out = join(folder, "file", "t");
    await expect(trainTokenizer({ inputs: [path], out, vocabSize: 300 })).rejects.toThrow(
      /cannot write/,
    );
  });

  it("a signal stops the work", async () => {
    const folder = await writeFiles(await temporaryFolder(), { "a.txt": "some text\n" });
    const signal = AbortSignal.abort(new Error("enough"));
    const options = { inputs: [join(folder, "a.txt")], out: join(folder, "t"), vocabSize: 300 };
    await expect(trainTokenizer({ ...options, signal })).rejects.toThrow("enough");
  });
});

it("the byte-level alphabet is in the order of its characters, as in Python", () => {
  const { tokens } = byteLevel(["<s>"], new WordCounts());
  expect(tokens).toEqual(["<s>", ...[...byteLevelAlphabet].sort()]);
});
