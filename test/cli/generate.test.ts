import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { saveModel } from "../../lib/checkpoint/model.js";
import { native } from "../../lib/core/native.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { generateTokens } from "../../lib/generate/generate.js";
import { Llama } from "../../lib/model/llama.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { fixtures } from "../data/support.js";
import { buildLibrary } from "./build.js";
import { cliFile, llamaforge } from "./run.js";

// `generate` with a padded vocabulary and a SentencePiece-style tokenizer.

let folder: string;
let tokenizer: Tokenizer;
let model: Llama;
const save = async (name: string): Promise<string> => {
  const place = join(folder, name);
  await saveModel(place, model);
  await tokenizer.copyTo(place);
  return place;
};

beforeAll(async () => {
  buildLibrary();
  folder = mkdtempSync(join(tmpdir(), "llamaforge-generate-"));
  const json = JSON.parse(readFileSync(join(fixtures, "llama2/tokenizer.json"), "utf8"));
  json.normalizer = null;
  json.pre_tokenizer = { type: "Metaspace", replacement: "▁", prepend_scheme: "always" };
  writeFileSync(join(folder, "tokenizer.json"), JSON.stringify(json));
  tokenizer = await Tokenizer.load(folder);
  const sizes = { hiddenSize: 16, intermediateSize: 24, layers: 1, heads: 2, kvHeads: 1 };
  const rest = { ropeTheta: 10_000, rmsNormEps: 1e-5, tieEmbeddings: false, contextLength: 64 };
  model = await Llama.create(llamaConfig({ vocabSize: 6000, ...sizes, ...rest }), { seed: 2 });
});
afterAll(() => {
  model.dispose();
  rmSync(folder, { recursive: true, force: true });
});

describe("generate", () => {
  it("writes prompt and continuation as one text, of tokens that the tokenizer has", async () => {
    const place = await save("padded");
    const options = { maxTokens: 60, temperature: 1, topK: 0, seed: 4 };
    const start = [...(await tokenizer.encode("a b c"))];
    const ids = [...start];
    const { vocabSize, eosId } = tokenizer;
    for await (const id of generateTokens(model, start, { ...options, vocabSize, stopAt: eosId }))
      ids.push(id);
    const flags = "--max-tokens 60 --temperature 1 --top-k 0 --seed 4".split(" ");
    const { code, stdout, stderr } = await llamaforge(["generate", place, "a b c", ...flags]);
    expect(stderr).toBe("");
    expect(code).toBe(0);
    expect(stdout).toBe(`${tokenizer.decode(ids)}\n`);
    expect(stdout).toMatch(/^a b c/);
  });

  it("reads the prompt from standard input, ends at a stop text, and goes beyond the context", async () => {
    const place = await save("input");
    const flags = "--max-tokens 150 --temperature 1 --top-k 0 --seed 4 --ignore-end".split(" ");
    const run = async (input: string, more: string[] = []) => {
      const child = spawn(process.execPath, [cliFile, "generate", place, "-", ...flags, ...more]);
      let stdout = "";
      child.stdout.on("data", (chunk: Buffer) => {
        stdout += chunk;
      });
      child.stdin.end(Buffer.from(input, "latin1"));
      const [code] = (await once(child, "close")) as [number | null];
      return { code, stdout };
    };
    // 150 tokens are more than the 64 of the model's context.
    const whole = await run("a b c\n");
    expect(whole.code).toBe(0);
    expect(whole.stdout).toMatch(/^a b c/);
    const ids = await tokenizer.encode(whole.stdout.slice(0, -1));
    expect(ids.length).toBeGreaterThan(100);
    const stop = whole.stdout.slice(-20, -16);
    const stopped = await run("a b c\n", ["--stop", stop]);
    expect(stopped.stdout).toBe(`${whole.stdout.slice(0, whole.stdout.indexOf(stop, 5))}\n`);
    expect((await run("\xff\xfe")).code).toBe(3);
  });

  it("names weights that are NaN, as a fault of the checkpoint", async () => {
    native.fill(model.norm.weight.tensor.native, Number.NaN);
    const place = await save("broken");
    const { code, stderr } = await llamaforge(["generate", place, "a"]);
    expect(code).toBe(4);
    expect(stderr).toMatch(
      /broken: .*weights that are NaN or infinite: model\.norm\.weight \(16 of 16\)/,
    );
    expect(stderr).not.toContain("This is a bug");
  });
});
