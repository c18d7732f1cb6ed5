/** Documents that end with another special token, and models whose answers end with several. */
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ArgumentError, TokenizerError } from "../../lib/core/errors.js";
import { readDatasetFile } from "../../lib/data/dataset-file.js";
import { TokenDataset } from "../../lib/data/shards.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { Engine } from "../../lib/generate/engine.js";
import { type PrepareOptions, prepare } from "../../lib/prepare/prepare.js";
import { trainTokenizer } from "../../lib/prepare/tokenizer/train-tokenizer.js";
import { serve } from "../../lib/serve/server.js";
import { Trainer } from "../../lib/train/trainer.js";
import { tinyConfig, tinyModel } from "../support/tiny-run.js";

let folder: string;
let tokenizer: Tokenizer;
let data: string;
let checkpoint: string;
const place = (...names: string[]) => join(folder, ...names);
const make = (options: Partial<PrepareOptions> = {}) =>
  prepare({ inputs: [place("a.jsonl")], tokenizer, out: place("other"), ...options });

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "llamaforge-ends-"));
  const texts = Array.from({ length: 40 }, (_, n) => ({
    text: `Document ${n} says <|eot|> and </s> and what <|plain|> it likes.`,
  }));
  await writeFile(place("a.jsonl"), texts.map((text) => JSON.stringify(text)).join("\n"));
  const special = ["<|eot|>", "<|plain|>"];
  const inputs = [place("a.jsonl")];
  await trainTokenizer({ inputs, out: place("t"), vocabSize: 330, specialTokens: special });
  // The last token is an added one that is not special.
  for (const name of ["tokenizer.json", "tokenizer_config.json"]) {
    const json = JSON.parse(await readFile(place("t", name), "utf8"));
    if (json.added_tokens) json.added_tokens[3].special = false;
    if (json.additional_special_tokens) json.additional_special_tokens = ["<|eot|>"];
    await writeFile(place("t", name), JSON.stringify(json));
  }
  tokenizer = await Tokenizer.load(place("t"));
  data = place("data");
  await make({ out: data, documentEnd: "<|eot|>" });
  const config = tinyConfig(data, place("run"), {
    model: { ...tinyModel, vocabSize: 330 },
    precision: "fp32",
    steps: 4,
    sample: { every: 0, prompts: ["Document"], maxTokens: 4, temperature: 0 },
    checkpoint: { every: 4 },
  });
  const trainer = await Trainer.create(config, { onNotice: () => {} });
  for await (const _ of trainer.run());
  checkpoint = trainer.result.checkpoint as string;
  trainer.dispose();
});
afterAll(() => rm(folder, { recursive: true }));

describe("documents", () => {
  test("end with the token, which no text can spell", async () => {
    expect(await readDatasetFile(data)).toMatchObject({ documentEnd: "token", endId: 2, eosId: 1 });
    const dataset = await TokenDataset.open(data, { sequenceLength: 8 });
    expect(dataset.marks).toEqual({ startId: null, endId: 2 });
    await dataset.close();
    const bytes = await readFile(join(data, "train-00000.bin"));
    const ids = [...new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2)];
    const { documents } = (await readDatasetFile(data)).splits.train;
    expect(ids.filter((id) => id === 2)).toHaveLength(documents);
    expect(ids).not.toContain(1);
    expect(ids.at(-1)).toBe(2);
  });

  test("with the end-of-text token by its name are those of eos, to the byte", async () => {
    await make({ out: place("eos") });
    await make({ out: place("named"), documentEnd: "</s>" });
    const shard = (name: string) => readFile(place(name, "train-00000.bin"));
    expect(await shard("named")).toEqual(await shard("eos"));
    expect(await readFile(place("named", "dataset.json"), "utf8")).toBe(
      await readFile(place("eos", "dataset.json"), "utf8"),
    );
  });

  test("cannot end with a token that is none, or that a text may spell", async () => {
    const unknown = make({ documentEnd: "<|end|>" });
    await expect(unknown).rejects.toThrow(
      /documentEnd: "<\|end\|>" is no token of it. Its special tokens: <s> <\/s> <\|eot\|>$/,
    );
    await expect(unknown).rejects.toThrow(TokenizerError);
    await expect(make({ documentEnd: "<|plain|>" })).rejects.toThrow(
      /a text may spell it; name it/,
    );
    const chats = [{ path: place("a.jsonl"), kind: "chat" as const }];
    const ofChats = make({ inputs: chats, documentEnd: "<|eot|>" });
    await expect(ofChats).rejects.toThrow(/documentEnd: "<\|eot\|>" is for text/);
    await expect(ofChats).rejects.toThrow(ArgumentError);
  });
});

describe("a model", () => {
  test("names the documents' end beside the end-of-text token", async () => {
    const config = JSON.parse(await readFile(join(checkpoint, "generation_config.json"), "utf8"));
    expect(config).toEqual({ bos_token_id: 0, eos_token_id: [2, 1] });
    using engine = await Engine.open(checkpoint);
    expect([...engine.endTokens].sort()).toEqual([1, 2]);
  });

  test("ends at a token that only its configuration names, special or not", async () => {
    const copy = place("several-ends");
    await cp(checkpoint, copy, { recursive: true });
    const config = { eos_token_id: [1, 3] };
    await writeFile(join(copy, "generation_config.json"), JSON.stringify(config));
    using engine = await Engine.open(copy);
    expect(engine.tokenizer.isSpecial(3)).toBe(false);
    const server = await serve(engine, { port: 0 });
    try {
      for (const end of [1, 2, 3]) {
        const force = { maxTokens: 5, temperature: 0, logitBias: { [end]: 100 } };
        const answer = await engine.complete("Document", { ...force, n: 1 });
        const ends = end !== 2;
        expect(answer).toMatchObject({ text: "", finishReason: ends ? "stop" : "length" });
        const response = await fetch(`${server.url}/v1/completions`, {
          method: "POST",
          headers: { "content-type": "application/json" },
          body: JSON.stringify({
            prompt: "Document",
            max_tokens: 5,
            temperature: 0,
            logit_bias: { [end]: 100 },
          }),
        });
        const { choices } = (await response.json()) as { choices: object[] };
        expect(choices[0]).toMatchObject({ text: "", finish_reason: ends ? "stop" : "length" });
      }
    } finally {
      await server.close();
    }
  });
});
