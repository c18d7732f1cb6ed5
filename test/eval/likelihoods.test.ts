/**
 * Likelihoods against a plain reference: one request at a time, whole logits, logSoftmax.
 */
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { noGrad } from "../../lib/core/autograd.js";
import { tensor } from "../../lib/core/create.js";
import { defaultDevice } from "../../lib/core/device.js";
import { ArgumentError, NonFiniteError, TokenizerError } from "../../lib/core/errors.js";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import type { Likelihood, LikelihoodRequest } from "../../lib/eval/model-answers.js";
import { Scorer } from "../../lib/eval/scorer.js";
import { createModel } from "../../lib/model/architectures.js";
import { LanguageModel, type ModelConfig } from "../../lib/model/language-model.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { Embedding, Linear } from "../../lib/nn/index.js";
import { writeParameter } from "../../lib/nn/store.js";
import { argmax, logSoftmax } from "../../lib/ops/index.js";
import { root } from "../cli/build.js";

const contextLength = 160;
const config = llamaConfig({
  vocabSize: 4096,
  hiddenSize: 48,
  intermediateSize: 64,
  layers: 2,
  heads: 4,
  kvHeads: 2,
  contextLength,
  ropeTheta: 10_000,
  rmsNormEps: 1e-5,
  tieEmbeddings: false,
});

let tokenizer: Tokenizer;
let model: LanguageModel;
beforeAll(async () => {
  tokenizer = await Tokenizer.load(join(root, "assets/quickstart"));
  model = await createModel(config, { seed: 3, training: false });
  await enlarge(model);
});

/** Enlarges the output head. The initialisation's gives all texts almost equal likelihoods. */
async function enlarge(of: LanguageModel): Promise<void> {
  const { tensor: weight, shape } = of.headWeight;
  const values = Float32Array.from(await weight.toArray(), (value) => value * 20);
  const large = tensor(values, { shape });
  writeParameter(of.headWeight, large);
  large.dispose();
}

/** A model that sees only the token before, and has no cache. */
class Bigram extends LanguageModel {
  readonly config: ModelConfig = { vocabSize: 4096, contextLength };
  readonly embedding = new Embedding(4096, 16, 1);
  readonly head = new Linear(16, 4096, 1);
  override get headWeight() {
    return this.head.weight;
  }
  override hidden(input: Tensor): Tensor {
    return this.embedding.forward(input);
  }
}

const shots =
  "Question: Which is a planet?\nA. Mars\nB. Rome\nAnswer: A\n\nQuestion: 2 + 3?\nA. 4\nB. 5\nAnswer: B\n\n";
const passage = "The farmer keeps the railway, and the court remembers the harvest of 1790. ";

/** Choices of one token, of several, few-shot blocks, repeats, no prompt, long prompts. */
const requests: LikelihoodRequest[] = [
  ...["Is it wet?", "Does iron float on water?", "Who builds roads?"].flatMap((question) =>
    [" A", " B"].map((continuation) => ({
      prompt: `${shots}Question: ${question}\nAnswer:`,
      continuation,
    })),
  ),
  ...["To open a jar,", "The people ask for"].flatMap((prompt) =>
    [" turn the lid.", " turn the whole jar upside down and wait.", " peace"].map(
      (continuation) => ({ prompt, continuation }),
    ),
  ),
  { prompt: "The nation ", continuation: "keeps its word" },
  { prompt: "The nation \u3000\n", continuation: "keeps its word" },
  { prompt: "", continuation: "A free press" },
  { prompt: "", continuation: "<s>A free press" },
  { prompt: "The people ask for", continuation: " peace" },
  { prompt: "The people ask", continuation: " for peace" },
  // The token across the border is neither the prompt's nor the continuation's.
  { prompt: "peace in the senate", continuation: "senate keeps" },
  { prompt: passage.repeat(12), continuation: "Is it true? yes" },
  { prompt: passage.repeat(11), continuation: "Is it true? no" },
  { prompt: "x", continuation: ` ${"a".repeat(40)}` },
];

interface Expected {
  logLikelihood: number;
  isGreedy: boolean;
}

/** The last `scored` of some tokens. */
async function expected(of: LanguageModel, tokens: number[], scored: number): Promise<Expected> {
  return await scope(async () => {
    const inputs = tokens.slice(0, -1);
    const logits = noGrad(() =>
      of.forward(tensor(Int32Array.from(inputs), { shape: [1, inputs.length] })),
    );
    const logs = await noGrad(() => logSoftmax(logits)).toArray();
    const best = await argmax(logits).toArray();
    let logLikelihood = 0;
    let isGreedy = true;
    for (let at = inputs.length - scored; at < inputs.length; at++) {
      const target = tokens[at + 1] as number;
      logLikelihood += logs[at * 4096 + target] as number;
      isGreedy &&= best[at] === target;
    }
    return { logLikelihood, isGreedy };
  });
}

async function expectedOf(of: LanguageModel, request: LikelihoodRequest, maxLength: number) {
  const encode = async (text: string) => [
    ...(await tokenizer.encode(text, { specialTokens: "recognize" })),
  ];
  const { prompt, continuation } = request;
  let tokens = await encode(prompt + continuation);
  const own = await encode(prompt.trimEnd());
  let before = own.length;
  if (prompt !== "") tokens = [...own, ...tokens.slice(before)];
  if (prompt === "") {
    const prefix = tokenizer.bosId ?? tokenizer.eosId;
    if (tokens[0] !== prefix) tokens = [prefix, ...tokens];
    before = 1;
  }
  const scored = tokens.length - before;
  const cutTokens = Math.max(0, tokens.length - maxLength - 1);
  return { ...(await expected(of, tokens.slice(cutTokens), scored)), cutTokens };
}

function expectEqual(got: readonly Likelihood[], wanted: readonly Likelihood[], bound = 1e-5) {
  expect(got.length).toBe(wanted.length);
  for (const [index, { logLikelihood, isGreedy, cutTokens }] of got.entries()) {
    const { logLikelihood: nats, ...rest } = wanted[index] as Likelihood;
    const scale = Math.max(1, Math.abs(nats));
    expect(Math.abs(logLikelihood - nats) / scale, `request ${index}`).toBeLessThan(bound);
    expect({ isGreedy, cutTokens }, `request ${index}`).toEqual(rest);
  }
}

describe("likelihoods", () => {
  let wanted: Likelihood[];
  beforeAll(async () => {
    // The most likely next token of a prompt makes a greedy request.
    const prompt = "The senate builds";
    await scope(async () => {
      const ids = await tokenizer.encode(prompt);
      const logits = noGrad(() => model.forward(tensor(ids, { shape: [1, ids.length] })));
      const next = (await argmax(logits).toArray()).at(-1) as number;
      const continuation = tokenizer.decode([...ids, next]).slice(prompt.length);
      requests.push({ prompt, continuation });
    });
    wanted = [];
    for (const request of requests) wanted.push(await expectedOf(model, request, contextLength));
  });

  it("equal one request at a time, for every batch", async () => {
    for (const batch of [1, 3, 1000, "auto"] as const) {
      const scorer = new Scorer(model, tokenizer, { batch });
      expectEqual(await scorer.likelihoods(requests), wanted);
    }
    expect(wanted.some(({ isGreedy }) => isGreedy)).toBe(true);
    expect(wanted.filter(({ cutTokens }) => cutTokens > 0).length).toBe(2);
  });

  it("do not depend on the other requests", async () => {
    const scorer = new Scorer(model, tokenizer);
    const order = requests.map((_, index) => (index * 7 + 3) % requests.length);
    expect(new Set(order).size).toBe(requests.length);
    const shuffled = await scorer.likelihoods(order.map((i) => requests[i] as LikelihoodRequest));
    expectEqual(
      shuffled,
      order.map((i) => wanted[i] as Likelihood),
    );
    const [alone] = await scorer.likelihoods([requests[4] as LikelihoodRequest]);
    expectEqual([alone as Likelihood], [wanted[4] as Likelihood]);
  });

  it("of a model without a cache come from whole rows", async () => {
    const bigram = new Bigram().allocate({ seed: 2, training: false });
    const all = [];
    for (const request of requests) all.push(await expectedOf(bigram, request, contextLength));
    expectEqual(await new Scorer(bigram, tokenizer).likelihoods(requests), all);
    bigram.dispose();
  });

  it("in bf16 do not depend on the batch either", async () => {
    const narrow = await createModel(config, { seed: 3, dtype: "bf16", training: false });
    const one = await new Scorer(narrow, tokenizer, { batch: 1 }).likelihoods(requests);
    const many = await new Scorer(narrow, tokenizer).likelihoods(requests);
    for (const [index, { logLikelihood }] of many.entries()) {
      const nats = (one[index] as Likelihood).logLikelihood;
      expect(Math.abs(logLikelihood - nats), `request ${index}`).toBeLessThan(1e-3);
    }
    narrow.dispose();
  });

  it("of a broken model are an error that names the weights", async () => {
    const broken = await createModel(config, { seed: 3, training: false });
    const { shape } = broken.headWeight;
    const weights = new Float32Array(broken.headWeight.size).fill(Number.NaN, 4800, 4801);
    writeParameter(broken.headWeight, tensor(weights, { shape }));
    const failure = await new Scorer(broken, tokenizer)
      .likelihoods(requests)
      .catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(NonFiniteError);
    expect((failure as Error).message).toContain("lm_head.weight (1 of");
    broken.dispose();
  });

  it("cut prompts at maxLength and count the tokens", async () => {
    const scorer = new Scorer(model, tokenizer, { maxLength: 24 });
    const all = [];
    for (const request of requests.slice(0, 12)) all.push(await expectedOf(model, request, 24));
    expectEqual(await scorer.likelihoods(requests.slice(0, 12)), all);
    expect(all[0]?.cutTokens).toBeGreaterThan(0);
  });

  it("report all requests as done, and stop at the signal", async () => {
    const controller = new AbortController();
    const { signal } = controller;
    const scorer = new Scorer(model, tokenizer, { batch: 2, signal });
    const counts: number[] = [];
    await scorer.likelihoods(requests, (count) => counts.push(count));
    expect(counts.at(-1)).toBe(requests.length);
    expect(counts).toEqual(counts.toSorted((a, b) => a - b));
    const reason = new Error("enough");
    const stopped = scorer.likelihoods(requests, () => controller.abort(reason));
    await expect(stopped).rejects.toBe(reason);
    expect(await new Scorer(model, tokenizer).likelihoods([])).toEqual([]);
  });
});

describe("a tokenizer that puts BOS in front", () => {
  it("adds it to prompts and texts, but not to a text that begins with it", async () => {
    const folder = await mkdtemp(join(tmpdir(), "llamaforge-bos-"));
    await cp(join(root, "assets/quickstart"), folder, { recursive: true });
    const settings = join(folder, "tokenizer_config.json");
    const json = JSON.parse(await readFile(settings, "utf8"));
    await writeFile(settings, JSON.stringify({ ...json, add_bos_token: true }));
    const scorer = new Scorer(model, await Tokenizer.load(folder));
    const continuation = " keeps its word";
    const [plain, named, bare] = await scorer.likelihoods([
      { prompt: "The nation", continuation },
      { prompt: "<s>The nation", continuation },
      { prompt: "", continuation: "The nation" },
    ]);
    const ids = [...(await tokenizer.encode(`The nation${continuation}`))];
    const scored = ids.length - (await tokenizer.encode("The nation")).length;
    const wanted = await expected(model, [1, ...ids], scored);
    expect(plain?.logLikelihood).toBeCloseTo(wanted.logLikelihood, 4);
    expect(named).toEqual(plain);
    // A text alone has the prefix token and BOS before it; a continuation without prompt has one.
    const own = [...(await tokenizer.encode("The nation"))];
    const [text] = await scorer.textLikelihoods(["The nation"]);
    const whole = await expected(model, [1, 1, ...own], own.length + 1);
    expect(text).toBeCloseTo(whole.logLikelihood, 4);
    const once = await expected(model, [1, ...own], own.length);
    expect(bare?.logLikelihood).toBeCloseTo(once.logLikelihood, 4);
    await rm(folder, { recursive: true });
  });
});

describe("textLikelihoods", () => {
  it("score each token once, in windows with as much context as fits", async () => {
    const long = passage.repeat(12);
    const texts = ["", "A free press", long, `${long}and the end`];
    const scorer = new Scorer(model, tokenizer, { maxLength: 40 });
    const got = await scorer.textLikelihoods(texts);
    for (const [index, text] of texts.entries()) {
      const ids = [...(await tokenizer.encode(text))];
      const all = [tokenizer.bosId ?? tokenizer.eosId, ...ids];
      let sum = 0;
      for (let done = 0; done < ids.length; ) {
        const count = Math.min(40, ids.length - done);
        done += count;
        const window = all.slice(Math.max(0, done - 40), done + 1);
        sum += (await expected(model, window, count)).logLikelihood;
      }
      expect(Math.abs((got[index] as number) - sum)).toBeLessThan(1e-5 * Math.max(1, -sum));
    }
    expect(got[0]).toBe(0);
  });
});

describe("bad input to a Scorer", () => {
  it.each<[string, LikelihoodRequest, string]>([
    ["an empty continuation", { prompt: "a b", continuation: "" }, "at least one token"],
    ["no text at all", { prompt: "", continuation: "" }, "at least one token"],
    ["a prompt of spaces", { prompt: "  ", continuation: "a" }, "a prompt that is empty"],
    [
      "a continuation beyond the context",
      { prompt: "a", continuation: " b c d e".repeat(80) },
      "a continuation of at most 160 tokens",
    ],
    ["a number", { prompt: 3, continuation: "a" } as never, "a string"],
  ])("refuses %s, and names the request", async (_, request, message) => {
    const scorer = new Scorer(model, tokenizer);
    const all = [{ prompt: "a", continuation: " b" }, request];
    const failure = await scorer.likelihoods(all).catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(ArgumentError);
    expect((failure as Error).message).toContain(message);
    expect((failure as Error).message).toContain("requests[1]");
  });

  it("refuses options and a vocabulary that do not fit", async () => {
    for (const [options, message] of [
      [{ batch: 0 }, "batch"],
      [{ maxLength: contextLength + 1 }, "maxLength"],
      [{ worldSize: 2 } as never, "worldSize"],
      [{ world: { rank: 2, worldSize: 2, gather: async () => [] } }, "world.rank"],
    ] as const) {
      expect(() => new Scorer(model, tokenizer, options)).toThrow(ArgumentError);
      expect(() => new Scorer(model, tokenizer, options)).toThrow(message);
    }
    const small = await createModel(
      { ...config, vocabSize: 100 },
      { device: defaultDevice(), training: false },
    );
    expect(() => new Scorer(small, tokenizer)).toThrow(TokenizerError);
    small.dispose();
  });
});
