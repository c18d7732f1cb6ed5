import { mkdtemp, readFile, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { beforeAll, describe, expect, test } from "vitest";
import { ArgumentError, NonFiniteError } from "../../lib/core/errors.js";
import { native } from "../../lib/core/native.js";
import { memory, synchronize } from "../../lib/core/runtime.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { generate, generateTokens } from "../../lib/generate/generate.js";
import { Llama } from "../../lib/model/llama.js";
import { llamaConfig } from "../../lib/model/llama-config.js";

// The support of data tests is not imported: it needs a package that GPU hosts do not have.
const fixtures = fileURLToPath(new URL("../data/fixtures", import.meta.url));

// Text of an untrained model, in which all tokens are about equally frequent.

const config = llamaConfig({
  vocabSize: 1200,
  hiddenSize: 16,
  intermediateSize: 24,
  layers: 1,
  heads: 2,
  kvHeads: 1,
  contextLength: 64,
  ropeTheta: 10_000,
  rmsNormEps: 1e-5,
  tieEmbeddings: false,
});
const options = { maxTokens: 40, temperature: 1, topK: 0, seed: 3 };

async function tokensOf(model: Llama, prompt: number[], more: object = {}): Promise<number[]> {
  const ids: number[] = [];
  for await (const id of generateTokens(model, prompt, { ...options, ...more })) ids.push(id);
  return ids;
}

describe("the tokens of a model with a padded vocabulary", () => {
  test.each([0, 1])("are those that the tokenizer has, at temperature %i", async (temperature) => {
    const model = await Llama.create(config, { seed: 1 });
    const most = async (more: object) =>
      Math.max(...(await tokensOf(model, [5], { temperature, ...more })));
    // Without the restriction about half of the ids would have no token, and for some prompt the
    // likeliest one as well.
    for (let first = 0; first < 4; first++) {
      expect(
        Math.max(...(await tokensOf(model, [first], { temperature, vocabSize: 600 }))),
      ).toBeLessThan(600);
    }
    if (temperature > 0) expect(await most({})).toBeGreaterThanOrEqual(600);
    model.dispose();
  });

  test("have no gaps of the tokenizer's among them, with top-k and top-p as well", async () => {
    const model = await Llama.create(config, { seed: 1 });
    const never = Array.from({ length: 1200 }, (_, id) => id).filter((id) => id % 3 !== 0);
    for (const more of [{}, { topK: 50 }, { topP: 0.5 }, { temperature: 0 }]) {
      const ids = await tokensOf(model, [1], { ...more, vocabSize: 900, never });
      expect(ids.filter((id) => id >= 900 || id % 3 !== 0)).toEqual([]);
    }
    await synchronize();
    const before = memory().tensors;
    await tokensOf(model, [1], { never });
    await synchronize();
    expect(memory().tensors).toBeLessThanOrEqual(before);
    model.dispose();
  });

  test("are refused where none is left, or a number is none", async () => {
    const model = await Llama.create(config, { seed: 1 });
    const first = (more: object) => tokensOf(model, [1], more);
    await expect(first({ vocabSize: 2, never: [0, 1] })).rejects.toThrow(ArgumentError);
    await expect(first({ vocabSize: 0 })).rejects.toThrow(/vocabSize/);
    await expect(first({ never: [-1] })).rejects.toThrow(/never/);
    model.dispose();
  });
});

describe("text", () => {
  let tokenizer: Tokenizer;
  beforeAll(async () => {
    // Metaspace as pre-tokenizer and a decoder that strips the leading space, as in SentencePiece's
    // exports.
    const folder = await mkdtemp(join(tmpdir(), "llamaforge-text-"));
    const json = JSON.parse(await readFile(join(fixtures, "llama2/tokenizer.json"), "utf8"));
    json.normalizer = null;
    json.pre_tokenizer = {
      type: "Metaspace",
      replacement: "▁",
      prepend_scheme: "always",
      split: true,
    };
    await writeFile(join(folder, "tokenizer.json"), JSON.stringify(json));
    tokenizer = await Tokenizer.load(folder);
  });

  test.each(["a b c", "the", "", "é"])("continues %j as one text with it", async (prompt) => {
    const model = await Llama.create(config, { seed: 2 });
    const start = prompt === "" ? [tokenizer.eosId] : [...(await tokenizer.encode(prompt))];
    const never = [tokenizer.eosId];
    const ids = await tokensOf(model, start, { vocabSize: tokenizer.vocabSize, never });
    expect(ids).toHaveLength(options.maxTokens);
    const pieces: string[] = [];
    for await (const piece of generate(model, tokenizer, prompt, { ...options, never }))
      pieces.push(piece);
    const before = tokenizer.decode(start);
    expect(before).toBe(prompt);
    expect(before + pieces.join("")).toBe(tokenizer.decode([...start, ...ids]));
    expect(pieces.length).toBeGreaterThan(10);
    model.dispose();
  });

  test("keeps the space of a word behind the prompt", async () => {
    const model = await Llama.create(config, { seed: 2 });
    const [word] = (await tokenizer.encode("the")) as unknown as [number];
    expect(tokenizer.token(word)).toBe("▁the");
    const never = Array.from({ length: 1200 }, (_, id) => id).filter((id) => id !== word);
    let text = "a b c";
    for await (const piece of generate(model, tokenizer, text, { maxTokens: 2, never }))
      text += piece;
    expect(text).toBe("a b c the the");
    model.dispose();
  });
});

describe("weights that are not finite", () => {
  test("are named, by their names in files", async () => {
    const model = await Llama.create(config, { seed: 1 });
    native.fill(model.norm.weight.tensor.native, Number.NaN);
    const failure = await tokensOf(model, [1]).catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(NonFiniteError);
    expect(failure).toMatchObject({
      code: "ERR_NON_FINITE",
      exitCode: 5,
      tensors: ["model.norm.weight"],
    });
    expect((failure as Error).message).toMatch(/NaN or infinite: model\.norm\.weight \(16 of 16\)/);
    model.dispose();
  });

  test("are told from finite ones that are too large", async () => {
    const model = await Llama.create(config, { seed: 1 });
    native.fill(model.norm.weight.tensor.native, 3e38);
    native.fill(model.head?.weight.tensor.native as never, 10);
    await expect(tokensOf(model, [1])).rejects.toThrow(/all weights are finite, but too large/);
    model.dispose();
  });
});
