import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ArgumentError } from "../../lib/core/errors.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import type { AnswerRequest } from "../../lib/eval/model-answers.js";
import { writeAnswers } from "../../lib/eval/model-generation.js";
import { StopTexts } from "../../lib/eval/stop-texts.js";
import { generateTokens } from "../../lib/generate/generate.js";
import type { Cache, Context, LanguageModel } from "../../lib/model/index.js";
import { Llama } from "../../lib/model/llama.js";
import { root } from "../cli/build.js";

const config = {
  vocabSize: 4096,
  hiddenSize: 32,
  intermediateSize: 48,
  layers: 2,
  heads: 4,
  kvHeads: 2,
  headSize: 8,
  contextLength: 64,
  ropeTheta: 10000,
  rmsNormEps: 1e-5,
  tieEmbeddings: false,
};

const texts = [
  "The senate asks",
  "A farmer builds good roads in 1790, and the court remembers the harvest.",
  "Our nation",
  "The people keep their word. The people keep their word. The people",
  "x",
  "This union welcomes a free press, good roads, peace and the railway; the court",
];

function request(prompt: string, more: Partial<AnswerRequest> = {}): AnswerRequest {
  return { prompt, until: [], maxTokens: 12, temperature: 0, topP: 1, seed: 3, ...more };
}

/** A Llama that computes every token from the whole text. */
class Uncached extends Llama {
  override hidden(ids: Parameters<Llama["hidden"]>[0], cache?: Cache, context?: Context) {
    if (cache) throw new ArgumentError("no cache");
    return super.hidden(ids, undefined, context);
  }
  override createCache(): Cache {
    throw new ArgumentError("[createCache] no cache");
  }
}

describe("writeAnswers", () => {
  let tokenizer: Tokenizer;
  let model: Llama;
  beforeAll(async () => {
    tokenizer = await Tokenizer.load(join(root, "assets/quickstart"));
    model = new Llama(config).allocate({ seed: 1 });
  });
  afterAll(() => model.dispose());

  const answersOf = async (
    requests: readonly AnswerRequest[],
    batch: number | "auto",
    written: LanguageModel = model,
    maxLength = 64,
  ) => writeAnswers(written, tokenizer, requests, { batch, maxLength });

  test("writes the tokens that generation of one text writes", async () => {
    const answers = await answersOf(
      texts.map((text) => request(text)),
      1,
    );
    for (const [index, text] of texts.entries()) {
      const ids: number[] = [];
      const prompt = [...(await tokenizer.encode(text))];
      const options = { maxTokens: 12, temperature: 0, vocabSize: tokenizer.vocabSize };
      for await (const id of generateTokens(model, prompt, options)) ids.push(id);
      expect(answers[index]).toEqual({ text: tokenizer.decode(ids), tokens: 12, cutTokens: 0 });
    }
    expect(new Set(answers.map(({ text }) => text)).size).toBe(texts.length);
  });

  test("decodes broken bytes as Hugging Face does", async () => {
    const control = [...(await tokenizer.encode("\x1d"))].at(-1) as number;
    const lead = [...(await tokenizer.encode("\u{1f600}"))].at(-4) as number;
    expect(tokenizer.token(lead)).toBe("<0xF0>");
    expect(await tokenizer.decodeBatch([[lead, control, control]])).toEqual(["\ufffd\ufffd\ufffd"]);
    expect(tokenizer.decode([lead, control, control])).toBe("\ufffd\x1d\x1d");
    await expect(tokenizer.decodeBatch([[4096]])).rejects.toThrow("0..4095, got 4096");
  });

  test("writes equal answers in batches of any size, with and without a cache", async () => {
    const alone = await answersOf(
      texts.map((text) => request(text)),
      1,
    );
    const stops = alone.map(({ text }, i) => text.slice(6 * i, 6 * i + 3));
    // The rows end one after the other, so that they leave the batch in several steps.
    const requests = texts.map((text, i) => request(text, { until: [stops[i] as string] }));
    const expected = await answersOf(requests, 1);
    expect(new Set(expected.map(({ tokens }) => tokens)).size).toBeGreaterThan(2);
    for (const [index, { text }] of expected.entries()) {
      const whole = (alone[index] as { text: string }).text;
      expect(text).toBe(whole.split(stops[index] as string)[0]);
    }
    for (const batch of [2, 3, 6, "auto"] as const) {
      expect(await answersOf(requests, batch)).toEqual(expected);
    }
    const uncached = new Uncached(config).allocate({ seed: 1 });
    expect(await answersOf(requests, 4, uncached)).toEqual(expected);
    uncached.dispose();
  });

  test("samples with the seed of each request, whatever the batch", async () => {
    const sampled = { temperature: 1, topP: 0.9, maxTokens: 6 };
    const requests = [1, 2, 3, 1].map((seed) => request("The senate", { ...sampled, seed }));
    const expected = await answersOf(requests, 1);
    expect(await answersOf(requests, 4)).toEqual(expected);
    expect(expected[0]).toEqual(expected[3]);
    expect(expected[0]).not.toEqual(expected[1]);
  });

  test("cuts a long prompt from the left, so that the answer fits", async () => {
    const long = texts.join(" ").repeat(3);
    const ids = await tokenizer.encode(long);
    const [answer] = await answersOf([request(long)], 1);
    expect(answer?.cutTokens).toBe(ids.length - (64 - 12));
    const kept = [...ids.slice(-(64 - 12))];
    const written: number[] = [];
    const options = { maxTokens: 12, temperature: 0, vocabSize: tokenizer.vocabSize };
    for await (const id of generateTokens(model, kept, options)) written.push(id);
    expect(answer?.text).toBe(tokenizer.decode(written));
  });

  test("refuses an answer that leaves no room for a prompt", async () => {
    const refused = answersOf([request("a"), request("b", { maxTokens: 64 })], 1);
    await expect(refused).rejects.toThrow("at most 63 for requests[1].maxTokens");
  });

  test("reports progress, and stops between tokens", async () => {
    const done: number[] = [];
    await writeAnswers(
      model,
      tokenizer,
      texts.map((text) => request(text)),
      {
        batch: 4,
        maxLength: 64,
        onDone: (count) => done.push(count),
      },
    );
    expect(done).toEqual([4, 6]);
    const signal = AbortSignal.abort(new Error("enough"));
    const stopped = writeAnswers(model, tokenizer, [request("x")], {
      batch: 1,
      maxLength: 64,
      signal,
    });
    await expect(stopped).rejects.toThrow("enough");
  });

  test("cuts stop texts one after the other, in their order", async () => {
    const ids = [...(await tokenizer.encode("one two three four"))];
    const cut = async (until: string[]) =>
      (await (await StopTexts.of(tokenizer, until)).textsOf([ids]))[0];
    expect(await cut([])).toBe("one two three four");
    expect(await cut([" three", "two"])).toBe("one ");
    // The first text cuts the second one in two, so that it is not found.
    expect(await cut(["o th", "two three"])).toBe("one tw");
  });

  test("looks for a stop text among the newest tokens, and for the end-of-text token", async () => {
    const stops = await StopTexts.of(tokenizer, ["two"]);
    const encode = async (text: string) => [...(await tokenizer.encode(text))];
    const answers = [
      await encode("one two three four five six seven eight nine ten"),
      await encode("one two"),
      await encode("one"),
      [...(await encode("one")), tokenizer.eosId],
    ];
    expect(await stops.reachedBy(answers)).toEqual([false, true, false, true]);
  });
});
