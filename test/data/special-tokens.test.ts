import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { TokenDataset } from "../../lib/data/shards.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { prepare } from "../../lib/prepare/prepare.js";
import { fixtures, temporaryFolder, writeFiles } from "./support.js";

// A token is special by its flag, by a file beside tokenizer.json, or because documents begin or
// end with it.

interface Json {
  // biome-ignore lint/suspicious/noExplicitAny: tests change every part of it
  [field: string]: any;
}

let llama2: Json;
beforeAll(async () => {
  llama2 = JSON.parse(await readFile(join(fixtures, "llama2/tokenizer.json"), "utf8")) as Json;
});

/** Llama 2's tokenizer without flags and with merges that spell `</s>` and `<pad>`. */
function withoutFlags(): Json {
  const json = structuredClone(llama2);
  for (const token of json.added_tokens) token.special = false;
  const { vocab, merges } = json.model;
  let next = Object.keys(vocab).length;
  const merge = (left: string, right: string) => {
    merges.push([left, right]);
    vocab[left + right] ??= next++;
  };
  for (const character of "</s>pad") vocab[character] ??= next++;
  merge("<", "/");
  merge("s", ">");
  merge("</", "s>");
  merge("<", "p");
  merge("a", "d");
  merge("<p", "ad");
  merge("<pad", ">");
  return json;
}

async function folderOf(json: Json, config: object | null): Promise<string> {
  const files = { "tokenizer.json": JSON.stringify(json) };
  const beside: Record<string, string> = config
    ? { "tokenizer_config.json": JSON.stringify(config) }
    : {};
  return await writeFiles(await temporaryFolder(), { ...files, ...beside });
}

const named = { bos_token: "<s>", eos_token: { content: "</s>" } };

describe.each([
  ["added, without the flag, and named beside", (json: Json) => json, named],
  ["added, without the flag, and named nowhere", (json: Json) => json, null],
  ["not added at all, and named beside", (json: Json) => ({ ...json, added_tokens: [] }), named],
])("an end of text that is %s", (_, change, config) => {
  it("comes from no text, is recognized where asked, and is not shown", async () => {
    const tokenizer = await Tokenizer.load(await folderOf(change(withoutFlags()), config));
    for (const text of ["a</s>b", "</s>", "<s></s>", " </s> "]) {
      const ids = await tokenizer.encode(text);
      expect([...ids]).not.toContain(tokenizer.eosId);
      expect([...ids]).not.toContain(tokenizer.bosId);
      expect(tokenizer.decode(ids)).toBe(text);
    }
    const ids = await tokenizer.encode("a</s>b", { specialTokens: "recognize" });
    expect([...ids].filter((id) => id === tokenizer.eosId)).toHaveLength(1);
    expect(tokenizer.decode(ids)).not.toContain("</s>");
    expect(tokenizer.decode(ids, { specialTokens: "keep" })).toContain("</s>");
  });

  it("ends a document once", async () => {
    const folder = await temporaryFolder();
    await writeFiles(folder, { "in/a.txt": "one </s> two</s>" });
    const tokenizer = await folderOf(change(withoutFlags()), config);
    const out = join(folder, "out");
    await prepare({ inputs: [join(folder, "in")], out, tokenizer, validationFraction: 0 });
    const dataset = await TokenDataset.open(out, { sequenceLength: 1 });
    const ids: number[] = [];
    const window = new Int32Array(2);
    for (let i = 0; i < dataset.windows; i++) {
      await dataset.read(i, window);
      ids.push(window[1] as number);
    }
    await dataset.close();
    const { eosId } = await Tokenizer.load(tokenizer);
    expect(ids.filter((id) => id === eosId)).toHaveLength(1);
    expect(ids.at(-1)).toBe(eosId);
  });
});

describe("a usual name that is a word of the vocabulary", () => {
  // Qwen's vocabulary has `<s>` as it stands in web pages, made by merges, and no token that begins a text.
  const withWord = () => {
    const json = withoutFlags();
    const model = json.model as { vocab: Record<string, number>; merges: unknown[] };
    const id = model.vocab["<s>"] as number;
    json.added_tokens = (json.added_tokens as { id: number }[]).filter((added) => added.id !== id);
    const size = Object.keys(model.vocab).length;
    model.vocab["<s"] = size;
    model.merges = [["<", "s"], ["<s", ">"], ...model.merges];
    return json;
  };

  it.each([
    ["is text", { eos_token: "</s>" }],
    [
      "is text where the files say that nothing begins a text",
      { eos_token: "</s>", bos_token: null },
    ],
  ])("%s", async (_, config) => {
    const tokenizer = await Tokenizer.load(await folderOf(withWord(), config));
    expect(tokenizer.bosId).toBeNull();
    const id = tokenizer.idOf("<s>") as number;
    expect(tokenizer.isSpecial(id)).toBe(false);
    for (const specialTokens of ["text", "recognize"] as const) {
      const ids = [...(await tokenizer.encode("a<s>b", { specialTokens }))];
      expect(ids).toContain(id);
      expect(tokenizer.decode(ids)).toBe("a<s>b");
    }
  });

  it("begins a text where the files say so, and then no text has it", async () => {
    const tokenizer = await Tokenizer.load(await folderOf(withWord(), named));
    expect(tokenizer.token(tokenizer.bosId as number)).toBe("<s>");
    expect([...(await tokenizer.encode("a<s>b"))]).not.toContain(tokenizer.bosId);
  });

  it("is none if the files say null, though it is an added token", async () => {
    const config = { eos_token: "</s>", bos_token: null };
    const tokenizer = await Tokenizer.load(await folderOf(withoutFlags(), config));
    expect(tokenizer.bosId).toBeNull();
  });
});

describe("files beside the tokenizer.json", () => {
  it.each([
    ["pad_token", { pad_token: "<pad>" }],
    ["additional_special_tokens", { additional_special_tokens: [{ content: "<pad>" }] }],
    ["extra_special_tokens", { extra_special_tokens: { pad: "<pad>" } }],
    ["added_tokens_decoder", { added_tokens_decoder: { 7: { content: "<pad>", special: true } } }],
  ])("make tokens special by %s", async (_, config) => {
    const tokenizer = await Tokenizer.load(await folderOf(withoutFlags(), { ...named, ...config }));
    const [plain] = [await Tokenizer.load(await folderOf(withoutFlags(), named))];
    const pad = [...(await plain.encode("<pad>"))].at(-1) as number;
    expect(plain.token(pad)).toBe("<pad>");
    const ids = [...(await tokenizer.encode("a <pad>"))];
    expect(ids).not.toContain(pad);
    expect(tokenizer.decode(ids)).toBe("a <pad>");
    expect(tokenizer.decode([pad])).toBe("");
  });

  it("do not take a byte from the text", async () => {
    const byte = "<0x41>";
    const padded = await folderOf(withoutFlags(), { ...named, pad_token: byte });
    const tokenizer = await Tokenizer.load(padded);
    expect(tokenizer.decode([llama2.model.vocab[byte] as number])).toBe("A");
    await expect(
      Tokenizer.load(await folderOf(withoutFlags(), { ...named, eos_token: byte })),
    ).rejects.toThrow(/eos_token: "<0x41>" stands for a byte, which all text may have/);
  });
});
