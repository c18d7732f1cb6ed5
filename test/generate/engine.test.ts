import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { saveModel } from "../../lib/checkpoint/model.js";
import { noGrad } from "../../lib/core/autograd.js";
import { tensor } from "../../lib/core/create.js";
import { ArgumentError, QueueFullError } from "../../lib/core/errors.js";
import { memory, synchronize } from "../../lib/core/runtime.js";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import type { CompleteAnswer } from "../../lib/generate/answer.js";
import { AnswerText } from "../../lib/generate/answer-text.js";
import { generateBeyondContext } from "../../lib/generate/beyond-context.js";
import { ChatTemplate } from "../../lib/generate/chat-template.js";
import { type AnswerOptions, Engine } from "../../lib/generate/engine.js";
import { Llama } from "../../lib/model/llama.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { writeRow } from "../../lib/ops/index.js";

// Answers of an untrained model, in which all tokens are about equally frequent, so that every
// difference in the sums shows in the text.

let tokenizer: Tokenizer;
let model: Llama;
let tensorsOfModel: number;
beforeAll(async () => {
  tokenizer = await Tokenizer.load("assets/quickstart/tokenizer.json");
  model = await Llama.create(
    llamaConfig({
      vocabSize: tokenizer.vocabSize + 7,
      hiddenSize: 64,
      intermediateSize: 96,
      layers: 2,
      heads: 4,
      kvHeads: 2,
      contextLength: 256,
      ropeTheta: 10_000,
      rmsNormEps: 1e-5,
      tieEmbeddings: false,
    }),
    { seed: 1 },
  );
  // The first answer makes what the model keeps, such as its rotary table.
  const engine = engineOf();
  await engine.complete("abc", { maxTokens: 2 });
  engine.dispose();
  await engine.idle();
  await synchronize();
  tensorsOfModel = memory().tensors;
});
afterAll(() => model.dispose());

const engineOf = (options: object = {}) =>
  new Engine(model, tokenizer, { pageSize: 32, maxBatch: 8, ...options });

const idsOf = async (engine: Engine, prompt: string | number[], options: AnswerOptions) => {
  const answer = await engine.complete(prompt, { ignoreEnd: true, ...options, n: 1 });
  return answer.tokens.map(({ id }) => id);
};

/** The likeliest tokens after a prompt by the model alone, with a cache of one sequence. */
async function likeliestIds(prompt: number[], count: number): Promise<number[]> {
  using _ = scope();
  const cache = model.createCache(1);
  const chosen: number[] = [];
  for (let input = prompt; chosen.length < count; input = chosen.slice(-1)) {
    const ids = tensor(Int32Array.from(input), { shape: [1, input.length] });
    const logits = await noGrad(() => model.forward(ids, cache)).toArray();
    const last = [...logits.slice(-model.config.vocabSize)].slice(0, tokenizer.vocabSize);
    chosen.push(last.indexOf(Math.max(...last)));
  }
  return chosen;
}

const prompts = [
  "a",
  "The quick brown fox",
  "x = [1, 2, 3]\n".repeat(6),
  "Once upon a time there was a model that knew nothing at all. ".repeat(3),
  "zz",
  "fn main() {}",
];

describe("greedy answers", () => {
  test("are those of the model without an engine, alone and all at once", async () => {
    using engine = engineOf();
    const expected: number[][] = [];
    for (const prompt of prompts)
      expected.push(await likeliestIds(await engine.encode(prompt), 60));
    const options = { maxTokens: 60, temperature: 0 };
    expect(await Promise.all(prompts.map((prompt) => idsOf(engine, prompt, options)))).toEqual(
      expected,
    );
    for (const [i, prompt] of prompts.entries()) {
      expect(await idsOf(engine, prompt, options)).toEqual(expected[i]);
    }
  });

  test("do not depend on chunks, pages that run out, or a warm prefix cache", async () => {
    const options = { maxTokens: 60, temperature: 0 };
    using whole = engineOf();
    const expected = await Promise.all(prompts.map((prompt) => idsOf(whole, prompt, options)));
    // 10 pages of 32 tokens for texts of up to 250 tokens: sequences are preempted.
    const bytes = 10 * 2 * 2 * 32 * 16 * 4 * 2;
    using small = engineOf({ promptTokens: 7, cacheBytes: bytes });
    expect(small.state.pages).toBe(10);
    for (let round = 0; round < 2; round++) {
      expect(await Promise.all(prompts.map((prompt) => idsOf(small, prompt, options)))).toEqual(
        expected,
      );
    }
    await small.idle();
    expect(small.state).toMatchObject({ running: 0, waiting: 0, freePages: 10 });
    using warm = engineOf();
    for (let round = 0; round < 2; round++) {
      expect(await Promise.all(prompts.map((prompt) => idsOf(warm, prompt, options)))).toEqual(
        expected,
      );
    }
    expect(warm.state.sharedTokens).toBeGreaterThan(32);
  });
});

test("a sampled answer has equal tokens alone and among others, whenever they come", async () => {
  const options = { maxTokens: 40, temperature: 1, topK: 0, seed: 11 };
  using engine = engineOf();
  const alone = await idsOf(engine, "one", options);
  const others = prompts.map((prompt, seed) =>
    idsOf(engine, prompt, { ...options, seed, topP: 0.9 }),
  );
  await engine.complete("wait", { maxTokens: 3 });
  expect(await idsOf(engine, "one", options)).toEqual(alone);
  await Promise.all(others);
});

test("with independentRows, an answer on a CPU has equal bits at batch 1 and 64", async ({
  skip,
}) => {
  skip(model.device.type !== "cpu", "GPUs do not promise it");
  const options = { maxTokens: 24, temperature: 1, ignoreEnd: true, n: 1 as const };
  const answer = async (engine: Engine, seed: number) => {
    const prompt = prompts[seed % prompts.length] as string;
    return (await engine.complete(prompt, { ...options, seed })).tokens;
  };
  const alone: Awaited<ReturnType<typeof answer>>[] = [];
  {
    using engine = engineOf({ independentRows: true, maxBatch: 64 });
    for (const [seed] of prompts.entries()) alone.push(await answer(engine, seed));
  }
  for (const promptTokens of [16, 512]) {
    using engine = engineOf({ independentRows: true, maxBatch: 64, promptTokens });
    const all = await Promise.all(Array.from({ length: 64 }, (_, seed) => answer(engine, seed)));
    expect(all.slice(0, alone.length)).toEqual(alone);
  }
});

describe("an answer ends", () => {
  test("before a stop string, wherever tokens end", async () => {
    using engine = engineOf();
    const options = { maxTokens: 60, temperature: 1, topK: 0, seed: 5, ignoreEnd: true };
    const { text } = await engine.complete("text", { ...options, n: 1 });
    for (const place of [3, 20, 31]) {
      const stop = text.slice(place, place + 4);
      const parts: string[] = [];
      let reason: string | null = null;
      for await (const part of engine.generate("text", { ...options, stop: ["never", stop] })) {
        parts.push(part.text);
        reason = part.finishReason;
      }
      expect(parts.join("")).toBe(text.slice(0, text.indexOf(stop)));
      expect(reason).toBe("stop");
    }
  });

  test("before the stop string that ends first, wherever tokens end", () => {
    const text = "one two three";
    for (const [stop, wanted] of [
      [["two three", "wo"], "one t"],
      [["wo", "two"], "one "],
      [["e t", "ne tw"], "on"],
    ] as const) {
      for (let size = 1; size <= text.length; size++) {
        const pieces = { push: (at: number) => text.slice(at, at + size), end: () => "" };
        const answer = new AnswerText(pieces, [], stop);
        let written = "";
        for (let at = 0; at < text.length; at += size) written += answer.push(at);
        expect([size, written + answer.end()]).toEqual([size, wanted]);
      }
    }
  });

  test("at a stop token, at the number of tokens, and at the end of the context", async () => {
    using engine = engineOf();
    const options = { temperature: 0, ignoreEnd: true, n: 1 as const };
    const { tokens } = await engine.complete("abc", { ...options, maxTokens: 12 });
    expect(tokens).toHaveLength(12);
    const third = tokens[2]?.id as number;
    const first = tokens.findIndex(({ id }) => id === third);
    const stopped = await engine.complete("abc", {
      ...options,
      maxTokens: 12,
      stopTokens: [third],
    });
    expect(stopped).toMatchObject({ finishReason: "stop", tokens: tokens.slice(0, first) });
    const prompt = Array.from({ length: 250 }, () => 5);
    const full = await engine.complete(prompt, options);
    expect(full).toMatchObject({ finishReason: "length" });
    expect(full.tokens).toHaveLength(6);
    await expect(engine.complete([...prompt, ...prompt], options)).rejects.toThrow(ArgumentError);
  });

  test("when its signal aborts or its reader leaves, and its pages are free again", async () => {
    using engine = engineOf();
    const { pages } = engine.state;
    const abort = new AbortController();
    const running = engine.complete("abc", {
      maxTokens: 200,
      signal: abort.signal,
      ignoreEnd: true,
    });
    for await (const part of engine.generate("other", { maxTokens: 200, ignoreEnd: true })) {
      if (part.tokens.length > 0) break;
    }
    abort.abort(new Error("enough"));
    await expect(running).rejects.toThrow("enough");
    await engine.idle();
    expect(engine.state).toMatchObject({ running: 0, waiting: 0, freePages: pages });
  });
});

test("log-probabilities are the model's, the likeliest tokens first", async () => {
  using engine = engineOf();
  const { tokens } = await engine.complete("abc", {
    maxTokens: 5,
    temperature: 0,
    topLogprobs: 3,
    n: 1,
  });
  for (const { id, logprob, top } of tokens) {
    expect(top).toHaveLength(3);
    expect(top?.[0]?.id).toBe(id);
    expect(top?.[0]?.logprob).toBeCloseTo(logprob, 5);
    expect(top?.map((one) => one.logprob)).toEqual(
      top?.map((one) => one.logprob).toSorted((a, b) => b - a),
    );
  }
});

test("penalties and biases act, and only on their own answer", async () => {
  using engine = engineOf();
  const options = { maxTokens: 50, temperature: 0, ignoreEnd: true };
  const [plain, biased, penalised, again] = await Promise.all([
    idsOf(engine, "abc", options),
    idsOf(engine, "abc", { ...options, logitBias: { 65: 100 } }),
    idsOf(engine, "abc", { ...options, presencePenalty: 50, frequencyPenalty: 10 }),
    idsOf(engine, "abc", options),
  ]);
  expect(again).toEqual(plain);
  expect(biased).toEqual(Array(50).fill(65));
  expect(new Set(penalised).size).toBe(50);
});

test("an engine without a tokenizer answers ids with ids", async () => {
  using engine = new Engine(model, null, { pageSize: 32 });
  const options = { maxTokens: 20, temperature: 0, n: 1 as const };
  const { text, tokens } = await engine.complete([5, 6, 7], options);
  expect(text).toBe("");
  expect(tokens).toHaveLength(20);
  await expect(engine.complete("abc", options)).rejects.toThrow("no tokenizer");
  await expect(engine.complete([model.config.vocabSize], options)).rejects.toThrow(ArgumentError);
});

test("parts that come sooner than asked are joined, and the first and last come at once", async () => {
  using engine = engineOf();
  const options = { maxTokens: 60, seed: 2, ignoreEnd: true, n: 2 };
  const whole = (await engine.complete("abc", options)) as readonly CompleteAnswer[];
  const started = performance.now();
  const got = whole.map(() => ({ text: "", tokens: [] as object[], parts: 0 }));
  for await (const part of engine.generate("abc", { ...options, partMs: 60_000 })) {
    const one = got[part.index] as (typeof got)[0];
    one.text += part.text;
    one.tokens.push(...part.tokens);
    one.parts++;
  }
  expect(performance.now() - started).toBeLessThan(30_000);
  for (const [i, { text, tokens, parts }] of got.entries()) {
    expect({ text, tokens }).toEqual({ text: whole[i]?.text, tokens: whole[i]?.tokens });
    expect(parts).toBe(2);
  }
});

test("n answers have seeds of their own", async () => {
  using engine = engineOf();
  const options = { maxTokens: 10, temperature: 1, topK: 0, ignoreEnd: true };
  const answers = await engine.complete("abc", { ...options, seed: 3, n: 3 });
  expect(answers).toHaveLength(3);
  const single = await engine.complete("abc", { ...options, seed: 5, n: 1 });
  expect((answers as { text: string }[])[2]?.text).toBe(single.text);
});

test("wrong requests are refused, and the engine goes on", async () => {
  using engine = engineOf({ maxQueue: 1, maxBatch: 1 });
  for (const [prompt, options] of [
    [5, {}],
    [[], {}],
    [[1.5], {}],
    [[10 ** 9], {}],
    [new DataView(new ArrayBuffer(8)), {}],
    ["a", { temperature: -1 }],
    ["a", { topk: 3 }],
    ["a", { n: 0 }],
    ["a", { signal: 5 }],
    ["a", { logitBias: { 99999999: 1 } }],
    ["a", { logitBias: { "05": 1 } }],
    ["a", { stop: [""] }],
    ["a", { stop: ["\ud83d"] }],
    ["a", { stop: ["a\ude00"] }],
    ["a", null],
  ] as const) {
    await expect(engine.complete(prompt as never, options as never)).rejects.toThrow(ArgumentError);
  }
  const long = [1, 2, 3].map(() => engine.complete("abc", { maxTokens: 30, ignoreEnd: true }));
  const results = await Promise.allSettled(long);
  expect(results.filter(({ status }) => status === "rejected").length).toBeGreaterThan(0);
  for (const result of results) {
    if (result.status === "rejected") expect(result.reason).toBeInstanceOf(QueueFullError);
  }
  expect((await engine.complete("abc", { maxTokens: 2, n: 1 })).tokens.length).toBeGreaterThan(0);
});

test("an answer with the smallest shares leaves its neighbours alone", async () => {
  using engine = engineOf();
  const settings = [{ topP: 1e-50 }, { temperature: 1e-300 }, { minP: 1e-50 }, {}];
  const answers = await Promise.all(
    settings.map((own) => idsOf(engine, "abc", { ...own, maxTokens: 4 })),
  );
  expect(answers.map(({ length }) => length)).toEqual([4, 4, 4, 4]);
  const greedy = await idsOf(engine, "abc", { temperature: 0, maxTokens: 4 });
  expect(answers.slice(0, 2)).toEqual([greedy, greedy]);
});

test("weights that are not finite are named to each request, and the engine goes on", async () => {
  const broken = await Llama.create(model.config, { seed: 2 });
  try {
    const engine = new Engine(broken, null, { pageSize: 32, maxBatch: 2 });
    const norm = broken.norm.weight.tensor;
    const fill = (value: number) => {
      using _ = scope();
      writeRow(norm.view([1, norm.size]), 0, tensor(new Float32Array(norm.size).fill(value)));
    };
    fill(Number.NaN);
    for (const options of [{}, { n: 3 }, { topLogprobs: 2 }]) {
      await expect(engine.complete([1, 2], options)).rejects.toThrow(/model\.norm\.weight/);
    }
    await expect(engine.score([1, 2, 3])).rejects.toThrow(/model\.norm\.weight/);
    fill(1);
    expect((await engine.complete([1, 2], { maxTokens: 3, n: 1 })).tokens).toHaveLength(3);
    engine.dispose();
    await engine.idle();
  } finally {
    broken.dispose();
  }
});

test("the end of an engine ends requests that have just come", async () => {
  const engine = engineOf();
  const answers = [engine.complete("abc"), engine.complete([1, 2], { n: 3 }), engine.score("abc")];
  engine.dispose();
  for (const result of await Promise.allSettled(answers)) {
    expect(String((result as PromiseRejectedResult).reason)).toContain("disposed of");
  }
});

test("several engines share a model that one of them has loaded", async () => {
  const folder = await mkdtemp(join(tmpdir(), "llamaforge-engines-"));
  try {
    await saveModel(folder, model, { tokenizer });
    const opened = await Engine.open(folder, { pageSize: 32 });
    const other = new Engine(opened.model, tokenizer, { pageSize: 32 });
    const before = await idsOf(opened, "abc", { maxTokens: 4 });
    other.dispose();
    expect(await idsOf(opened, "abc", { maxTokens: 4 })).toEqual(before);
    // Without its model, an engine refuses instead of waiting for ever.
    const orphan = new Engine(opened.model, tokenizer, { pageSize: 32 });
    opened.dispose();
    await opened.idle();
    await expect(orphan.complete("abc")).rejects.toThrow();
    orphan.dispose();
  } finally {
    await rm(folder, { recursive: true });
  }
});

test("weights that change while a page fills are not remembered in it", async () => {
  const trained = await Llama.create(model.config, { seed: 2 });
  try {
    const engine = new Engine(trained, null, { pageSize: 32, maxBatch: 2 });
    const options = { temperature: 0, maxTokens: 50, n: 1 } as const;
    const ids: number[] = [5, 6, 7];
    for await (const { tokens } of engine.generate(ids.slice(), options)) {
      // The keys of the first tokens are those of the old weights.
      if (ids.length < 8) changeEmbedding(trained);
      ids.push(...tokens.map(({ id }) => id));
    }
    const text = ids.slice(0, 50);
    const warm = await engine.complete(text, options);
    expect(engine.state.sharedTokens).toBe(0);
    const cold = new Engine(trained, null, { pageSize: 32, maxBatch: 2 });
    expect(warm.tokens).toEqual((await cold.complete(text, options)).tokens);
    // A change of any weight counts, not only of the head's.
    changeEmbedding(trained);
    await engine.complete(text, options);
    expect(engine.state.sharedTokens).toBe(0);
    cold.dispose();
    engine.dispose();
    await Promise.all([cold.idle(), engine.idle()]);
  } finally {
    trained.dispose();
  }
});

/** Changes a weight of a group without the head. */
function changeEmbedding({ store, headWeight }: Llama): void {
  const group = store.groups.find(
    ({ entries }) => !entries.some(({ parameter }) => parameter === headWeight),
  );
  const weight = group?.entries[0]?.parameter.tensor as Tensor;
  using _ = scope();
  const values = new Float32Array(weight.size).map((_, i) => Math.cos(i));
  writeRow(weight.view([1, weight.size]), 0, tensor(values));
}

describe("a chat", () => {
  const messages = [{ role: "user", content: "Hello" }];

  test("continues the template's text, of which special tokens are tokens", async () => {
    const { eosId } = tokenizer;
    const chatTemplate = ChatTemplate.of("{{ messages[0].content }}{{ eos_token }}", tokenizer);
    using engine = engineOf({ chatTemplate });
    const ids = await engine.encodeChat(messages);
    expect(ids).toEqual([...(await tokenizer.encode("Hello")), eosId]);
    const options = { maxTokens: 9, temperature: 0, ignoreEnd: true };
    let text = "";
    for await (const part of engine.chat(messages, options)) text += part.text;
    expect(text).toBe((await engine.complete(ids, { ...options, n: 1 })).text);
    await expect(engine.encodeChat([{ role: "user" } as never])).rejects.toThrow(/messages\[0\]/);
  });

  test("needs a template", async () => {
    using engine = engineOf();
    await expect(engine.chat(messages).next()).rejects.toThrow(/has no chat template/);
  });

  test("ends at each of several end tokens", async () => {
    using plain = engineOf();
    const options = { maxTokens: 12, temperature: 0, n: 1 as const };
    const { tokens } = await plain.complete("abc", { ...options, ignoreEnd: true });
    const ids = tokens.map(({ id }) => id);
    for (const end of [ids[3], ids[7]] as number[]) {
      using engine = engineOf({ endTokens: [tokenizer.eosId, end] });
      const answer = await engine.complete("abc", options);
      expect(answer.tokens.map(({ id }) => id)).toEqual(ids.slice(0, ids.indexOf(end)));
      expect(answer.finishReason).toBe("stop");
      const whole = await engine.complete("abc", { ...options, ignoreEnd: true });
      expect(whole.tokens).toHaveLength(12);
    }
  });
});

test("an answer beyond the context goes on from the newest half, as one text", async () => {
  using engine = engineOf({ maxLength: 64 });
  const options = { maxTokens: 150, temperature: 1, topK: 0, seed: 2, ignoreEnd: true };
  const write = async (more: object = {}) => {
    let [text, reason] = ["", "" as string | null];
    const ids: number[] = [];
    for await (const part of generateBeyondContext(engine, "abc ".repeat(40), {
      ...options,
      ...more,
    })) {
      text += part.text;
      reason = part.finishReason;
      ids.push(...part.tokens.map(({ id }) => id));
    }
    return { text, ids, reason };
  };
  const whole = await write();
  expect(whole.ids).toHaveLength(150);
  expect(whole.reason).toBe("length");
  const before = await engine.encode("abc ".repeat(40));
  expect("abc ".repeat(40) + whole.text).toBe(tokenizer.decode([...before, ...whole.ids]));
  expect(await write()).toEqual(whole);
  const stop = whole.text.slice(-12, -8);
  const stopped = await write({ stop: [stop] });
  expect(stopped.reason).toBe("stop");
  expect(stopped.text).toBe(whole.text.slice(0, whole.text.indexOf(stop)));
});

test("an engine gives back all memory", async () => {
  const engine = engineOf();
  await engine.complete("abc", {
    maxTokens: 9,
    presencePenalty: 1,
    logitBias: { 5: 1 },
    topLogprobs: 2,
  });
  const open = engine.complete("abc", { maxTokens: 200 });
  engine.dispose();
  await expect(open).rejects.toThrow("disposed");
  await engine.idle();
  await synchronize();
  expect(memory().tensors).toBe(tensorsOfModel);
  await expect(engine.complete("abc")).rejects.toThrow("disposed");
});

describe("the score of a prompt", () => {
  test("is the model's log-probability of each token, and its likeliest tokens", async () => {
    using engine = engineOf();
    const ids = await engine.encode(prompts[3] as string);
    const [scored, plain] = await Promise.all([engine.score(ids, { top: 4 }), engine.score(ids)]);
    expect(scored.map(({ id }) => id)).toEqual(ids);
    expect(scored[0]).toEqual({ id: ids[0], logprob: null });
    expect(plain.map(({ logprob }) => logprob)).toEqual(scored.map(({ logprob }) => logprob));
    // The answer's own log-probabilities are those of the text that it became.
    const answer = await engine.complete(ids, {
      maxTokens: 8,
      temperature: 0,
      topLogprobs: 4,
      n: 1,
    });
    const whole = await engine.score([...ids, ...answer.tokens.map(({ id }) => id)], { top: 4 });
    for (const [i, token] of answer.tokens.entries()) {
      const same = whole[ids.length + i];
      expect(same?.logprob).toBeCloseTo(token.logprob, 4);
      expect(same?.top?.map(({ id }) => id)).toEqual(token.top?.map(({ id }) => id));
    }
    for (const { top, logprob } of scored.slice(1)) {
      expect(top).toHaveLength(4);
      expect(logprob).toBeLessThanOrEqual((top?.[0]?.logprob as number) + 1e-4);
    }
    expect(await engine.score([7])).toEqual([{ id: 7, logprob: null }]);
  });

  test("is refused where it cannot be, leaves nothing behind, and ends before the engine", async () => {
    const engine = engineOf();
    for (const [prompt, options] of [
      [[], {}],
      [Array(300).fill(1), {}],
      ["a", { top: -1 }],
      ["a", { top: 1.5 }],
      ["a", { signal: 1 }],
    ] as const) {
      await expect(engine.score(prompt as never, options as never)).rejects.toThrow(ArgumentError);
    }
    const signal = AbortSignal.abort(new Error("enough"));
    await expect(engine.score("abc", { signal })).rejects.toThrow("enough");
    const running = engine.score("abc def ghi", { top: 2 });
    await engine.encode("x");
    engine.dispose();
    await Promise.allSettled([running]);
    await engine.idle();
    await synchronize();
    expect(memory().tensors).toBe(tensorsOfModel);
    await expect(engine.score("abc")).rejects.toThrow("disposed");
  });
});
