// docs/faults.md, row T1: wrong tokenizer files end with exit code 3 and name the file and the
// field.
import { spawnSync } from "node:child_process";
import { readFile, truncate } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { TokenizerError } from "../../lib/core/errors.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { byteLevelAlphabet } from "../../lib/data/tokenizer-json.js";
import { buildLibrary } from "../cli/build.js";
import { cliFile } from "../cli/run.js";
import { fixtures, quickstart, temporaryFolder, writeFiles } from "../data/support.js";

interface Json {
  // biome-ignore lint/suspicious/noExplicitAny: the table below breaks every part of it
  [field: string]: any;
}

let llama2: string;
let byteLevel: string;
beforeAll(async () => {
  llama2 = await readFile(join(fixtures, "llama2/tokenizer.json"), "utf8");
  byteLevel = await readFile(join(fixtures, "byte-level/tokenizer.json"), "utf8");
});

/** Row T1: the damage, its code, and the expected message. */
const faults: [string, (json: Json) => unknown, RegExp][] = [
  ["no object", () => [], /expected a JSON object/],
  ["no model", (json) => delete json.model, /model: expected an object/],
  [
    "another kind of model",
    (json) => {
      json.model.type = "Unigram";
    },
    /model\.type: expected "BPE".*"Unigram"/,
  ],
  [
    "no vocabulary",
    (json) => {
      json.model.vocab = [];
    },
    /model\.vocab: expected an object/,
  ],
  [
    "a duplicate id",
    (json) => {
      json.model.vocab.the = 300;
    },
    /model\.vocab: duplicate id 300: .* and "the"/,
  ],
  [
    "an id that is no number",
    (json) => {
      json.model.vocab["<0x41>"] = "68";
    },
    /model\.vocab\["<0x41>"\]: expected an id/,
  ],
  [
    "a fractional id",
    (json) => {
      json.model.vocab["<0x41>"] = 68.5;
    },
    /expected an id in 0\.\.2\^31-1, got 68\.5/,
  ],
  [
    "a negative id",
    (json) => {
      json.model.vocab["<0x41>"] = -1;
    },
    /expected an id/,
  ],
  [
    "many ids without a token",
    (json) => {
      json.model.vocab.extra = 7000;
    },
    /model\.vocab: 6400 ids below 7000 have no token; at most 4096 may/,
  ],
  [
    "byte fallback off",
    (json) => {
      json.model.byte_fallback = false;
    },
    /model\.byte_fallback: expected true/,
  ],
  [
    "a missing byte",
    (json) => {
      json.model.vocab["<0xZZ>"] = json.model.vocab["<0x41>"];
      delete json.model.vocab["<0x41>"];
    },
    /no token for byte 65: "<0x41>" is missing/,
  ],
  [
    "merges that are no list",
    (json) => {
      json.model.merges = {};
    },
    /model\.merges: expected a list/,
  ],
  [
    "a merge of three",
    (json) => {
      json.model.merges[3] = ["a", "b", "c"];
    },
    /model\.merges\[3\]: expected two tokens/,
  ],
  [
    "a merge of an unknown token",
    (json) => {
      json.model.merges[0] = ["qqq", "e"];
    },
    /model\.merges\[0\]: "qqq" is not in model\.vocab/,
  ],
  [
    "a merge into an unknown token",
    (json) => {
      json.model.merges[0] = ["z", "z"];
    },
    /model\.merges\[0\]: "zz" is not in/,
  ],
  [
    "an added token with another id",
    (json) => {
      json.added_tokens[2].id = 5;
    },
    /added_tokens\[2\]: "<\/s>" is 2 in model\.vocab, 5 here/,
  ],
  [
    "an added token without content",
    (json) => {
      json.added_tokens[1].content = "";
    },
    /added_tokens\[1\]: expected an object with a content/,
  ],
  [
    "no decoder",
    (json) => {
      json.decoder = null;
    },
    /decoder: missing/,
  ],
  [
    "an unknown decoder",
    (json) => {
      json.decoder = { type: "WordPiece" };
    },
    /decoder: expected .* got WordPiece/,
  ],
  [
    "a normalizer of an unknown kind",
    (json) => {
      json.normalizer = { type: "Nonsense" };
    },
    /tokenizer\.json: /,
  ],
  [
    "normalizers that make text 100,000 times as long",
    (json) => {
      const step = { type: "Replace", pattern: { String: "a" }, content: "a".repeat(10) };
      json.normalizer = { type: "Sequence", normalizers: Array(5).fill(step) };
    },
    /normalizer: its steps can make text .* times as long.*expected at most 64/,
  ],
  [
    "normalizers of expressions that do",
    (json) => {
      const step = { type: "Replace", pattern: { Regex: "." }, content: "aaaa" };
      json.normalizer = { type: "Sequence", normalizers: Array(5).fill(step) };
    },
    /normalizer: its steps can make text/,
  ],
  [
    "normalizers that do only together",
    (json) => {
      const step = (from: string, content: string) => ({
        type: "Replace",
        pattern: { String: from },
        content,
      });
      const normalizers = [step("a", "bb"), step("bbb", "c".repeat(60)), step("c", "dddd")];
      json.normalizer = { type: "Sequence", normalizers };
    },
    /normalizer: its steps can make text/,
  ],
  [
    "thirty ByteLevel steps",
    (json) => {
      const step = { type: "ByteLevel", add_prefix_space: false, use_regex: false };
      json.pre_tokenizer = { type: "Sequence", pretokenizers: Array(30).fill(step) };
      for (const [byte, name] of byteLevelAlphabet.entries()) json.model.vocab[name] ??= 600 + byte;
      const ids = Object.values<number>(json.model.vocab).sort((a, b) => a - b);
      const places = new Map(ids.map((id, place) => [id, place]));
      for (const name of Object.keys(json.model.vocab)) {
        json.model.vocab[name] = places.get(json.model.vocab[name]);
      }
    },
    /pre_tokenizer: its steps can make text/,
  ],
  [
    "a Strip decoder without counts",
    (json) => {
      json.decoder = { type: "Strip", content: " " };
    },
    /decoder: Strip: expected a character as content, and counts/,
  ],
  [
    "a normalizer that is no object",
    (json) => {
      json.normalizer = "NFC";
    },
    /normalizer: expected an object or null/,
  ],
];

async function load(files: Record<string, string>): Promise<Tokenizer> {
  return await Tokenizer.load(await writeFiles(await temporaryFolder(), files));
}

describe("T1 damaged tokenizers", () => {
  it.each(faults)("refuses %s", async (_, damage, message) => {
    const json = JSON.parse(llama2) as Json;
    const result = damage(json);
    const text = JSON.stringify(Array.isArray(result) ? result : json);
    const error = await load({ "tokenizer.json": text }).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(TokenizerError);
    expect((error as TokenizerError).message).toMatch(message);
    expect((error as TokenizerError).message).toContain("tokenizer.json");
    expect((error as TokenizerError).exitCode).toBe(3);
  });

  it("accepts what the damages start from", async () => {
    expect((await load({ "tokenizer.json": llama2 })).vocabSize).toBe(600);
    expect((await load({ "tokenizer.json": byteLevel })).vocabSize).toBe(603);
  });

  it("refuses a byte-level vocabulary with a byte missing", async () => {
    const json = JSON.parse(byteLevel) as Json;
    json.model.vocab["\u0000 none"] = json.model.vocab.Ġ;
    delete json.model.vocab.Ġ;
    json.model.merges = [];
    await expect(load({ "tokenizer.json": JSON.stringify(json) })).rejects.toThrow(
      /no token for byte 32: "Ġ" is missing/,
    );
  });

  it("accepts normalizers that make text a little longer", async () => {
    const json = JSON.parse(llama2) as Json;
    const step = (from: string, content: string) => ({
      type: "Replace",
      pattern: { String: from },
      content,
    });
    const longer = [step("\t", " ".repeat(8)), step("\n", "<newline>"), step("…", "...")];
    json.normalizer.normalizers.unshift(...longer);
    const tokenizer = await load({ "tokenizer.json": JSON.stringify(json) });
    expect(tokenizer.decode(await tokenizer.encode("a\tb…"))).toBe("a        b...");
  });

  it("accepts a vocabulary whose tab is a token of its own, as Gemma's", async () => {
    const json = JSON.parse(llama2) as Json;
    json.model.vocab["\t"] = json.model.vocab["<0x09>"];
    delete json.model.vocab["<0x09>"];
    const tokenizer = await load({ "tokenizer.json": JSON.stringify(json) });
    expect(tokenizer.decode(await tokenizer.encode("a\tb"))).toBe("a\tb");
  });

  it("refuses a file larger than any tokenizer, without reading it", async () => {
    const folder = await writeFiles(await temporaryFolder(), { "tokenizer.json": "{}" });
    await truncate(join(folder, "tokenizer.json"), 600 * 2 ** 20);
    await expect(Tokenizer.load(folder)).rejects.toThrow(TokenizerError);
    await expect(Tokenizer.load(folder)).rejects.toThrow(/629145600 bytes, more than the limit/);
  });

  it("says how to install the tokenizers package again where its native part does not load", async () => {
    buildLibrary();
    const child = spawnSync(
      process.execPath,
      [cliFile, "prepare", fixtures, "--out", "none", "--tokenizer", quickstart],
      {
        cwd: await temporaryFolder(),
        env: { ...process.env, NAPI_RS_NATIVE_LIBRARY_PATH: "/nowhere.node" },
      },
    );
    expect(child.status).toBe(3);
    const stderr = String(child.stderr);
    expect(stderr).toMatch(/npm package "tokenizers" cannot be loaded: .*nowhere\.node/);
    expect(stderr).toMatch(/npm install/);
    expect(stderr).not.toMatch(/This is a bug/);
  });

  it("refuses text that is no JSON, and a missing file", async () => {
    await expect(load({ "tokenizer.json": llama2.slice(0, -5) })).rejects.toThrow(/not JSON/);
    await expect(load({ "other.json": "{}" })).rejects.toThrow(/cannot read .*tokenizer\.json/);
    await expect(Tokenizer.load("/nonexistent/tokenizer.json")).rejects.toThrow(TokenizerError);
  });

  it("refuses a missing or foreign end-of-text token", async () => {
    const json = JSON.parse(byteLevel) as Json;
    json.added_tokens[1].content = "<|finis|>";
    const text = JSON.stringify(json);
    await expect(load({ "tokenizer.json": text })).rejects.toThrow(/no end-of-text token/);
    const named = await load({
      "tokenizer.json": text,
      "tokenizer_config.json": '{"eos_token": "<|finis|>"}',
    });
    expect(named.eosId).toBe(json.added_tokens[1].id);
    await expect(
      load({ "tokenizer.json": text, "tokenizer_config.json": '{"eos_token": "</s>"}' }),
    ).rejects.toThrow(/tokenizer_config\.json: eos_token: "<\/s>" is no token of/);
    await expect(load({ "tokenizer.json": text, "special_tokens_map.json": "[]" })).rejects.toThrow(
      /special_tokens_map\.json: expected a JSON object/,
    );
    await expect(load({ "tokenizer.json": text, "tokenizer_config.json": "{" })).rejects.toThrow(
      /tokenizer_config\.json: not JSON/,
    );
  });

  it("refuses a vocabulary or ends of text that are not the model's", async () => {
    const tokenizer = await Tokenizer.load(quickstart);
    expect(() => tokenizer.assertFits({ vocabSize: 4096, bosId: 1, eosId: 2 })).not.toThrow();
    expect(() => tokenizer.assertFits({ vocabSize: 4224, bosId: null })).not.toThrow();
    expect(() => tokenizer.assertFits({ vocabSize: 4000 })).toThrow(
      /vocabSize: .*4095, the model 4000/,
    );
    expect(() => tokenizer.assertFits({ vocabSize: 4096, eosId: 1 })).toThrow(
      /eosId: it has 2, the model 1/,
    );
    expect(() => tokenizer.assertFits({ vocabSize: 4096, bosId: 2 })).toThrow(
      /bosId: it has 1, the model 2/,
    );
  });
});
