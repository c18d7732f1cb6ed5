import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { native } from "../../lib/core/native.js";
import { memory } from "../../lib/core/runtime.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import type { Answer, AnswerRequest } from "../../lib/eval/model-answers.js";
import { writeAnswers } from "../../lib/eval/model-generation.js";
import { Scorer } from "../../lib/eval/scorer.js";
import { StopTexts } from "../../lib/eval/stop-texts.js";
import { generateTokens } from "../../lib/generate/generate.js";
import { LanguageModel } from "../../lib/model/language-model.js";
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
  override createPages(count: number, size: number): readonly Tensor[] {
    return LanguageModel.prototype.createPages.call(this, count, size);
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

  test("writes equal answers in batches of any size, also of prompts that begin alike", async () => {
    const alone = await answersOf(
      texts.map((text) => request(text)),
      1,
    );
    const stops = alone.map(({ text }, i) => text.slice(6 * i, 6 * i + 3));
    // The answers end one after the other, so that they leave the batch in several steps.
    const requests = texts.map((text, i) => request(text, { until: [stops[i] as string] }));
    const expected = await answersOf(requests, 1);
    expect(new Set(expected.map(({ tokens }) => tokens)).size).toBeGreaterThan(2);
    for (const [index, { text }] of expected.entries()) {
      const whole = (alone[index] as { text: string }).text;
      expect(text).toBe(whole.split(stops[index] as string)[0]);
    }
    for (const batch of [2, 3, 6, 65536, "auto"] as const) {
      expect(await answersOf(requests, batch)).toEqual(expected);
    }
    // Prompts longer than a page of the cache, whose work is shared.
    const block = "The court remembers the harvest. ".repeat(20);
    const long = new Llama({ ...config, contextLength: 512 }).allocate({ seed: 1 });
    const alike = texts.map((text) => request(block + text));
    const apart: Answer[] = [];
    for (const one of alike) apart.push(...(await answersOf([one], 1, long, 512)));
    for (const batch of [1, 4, "auto"] as const) {
      expect(await answersOf(alike, batch, long, 512)).toEqual(apart);
    }
    long.dispose();
  });

  test("refuses a model without a paged cache", async () => {
    const uncached = new Uncached(config).allocate({ seed: 1 });
    const refused = answersOf([request("x")], 1, uncached);
    await expect(refused).rejects.toThrow("Uncached has no paged cache");
    uncached.dispose();
  });

  test("never writes ids that the tokenizer lacks", async () => {
    const padded = new Llama({ ...config, vocabSize: 4096 + 64 }).allocate({ seed: 1 });
    const requests = texts.map((text) => request(text, { maxTokens: 40 }));
    const answers = await answersOf(requests, "auto", padded);
    expect(answers.map(({ tokens }) => tokens)).toEqual(texts.map(() => 40));
    padded.dispose();
  });

  test("names weights that are not finite, and leaves nothing behind", async () => {
    const broken = new Llama(config).allocate({ seed: 1 });
    native.fill(broken.norm.weight.tensor.native, Number.NaN);
    // The model keeps a table from its first pass on.
    await answersOf([request("x")], 1, broken).catch(() => {});
    const { tensors } = memory(broken.device);
    const failed = answersOf([request("x"), request("y")], 1, broken);
    await expect(failed).rejects.toThrow(/NaN or infinite: model\.norm\.weight \(32 of 32\)/);
    expect(memory(broken.device).tensors).toBe(tensors);
    broken.dispose();
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

  test("reports progress, and stops between tokens, also for the listener's error", async () => {
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
    expect(done).toEqual([1, 2, 3, 4, 5, 6]);
    const stop = new AbortController();
    for (const abort of [() => stop.abort(new Error("enough")), () => {}]) {
      const stopped = writeAnswers(model, tokenizer, [request("x"), request("y")], {
        batch: 1,
        maxLength: 64,
        signal: stop.signal,
        onDone: abort,
      });
      await expect(stopped).rejects.toThrow("enough");
    }
    const thrown = writeAnswers(model, tokenizer, [request("x")], {
      batch: 1,
      maxLength: 64,
      onDone: () => {
        throw new Error("the listener's own");
      },
    });
    await expect(thrown).rejects.toThrow("the listener's own");
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

  test("ends at every end token of the model, whose text is no stop text", async () => {
    const prompt = texts[1] as string;
    const written: number[] = [];
    const options = { maxTokens: 12, temperature: 0, vocabSize: tokenizer.vocabSize };
    const ids = [...(await tokenizer.encode(prompt))];
    for await (const id of generateTokens(model, ids, options)) written.push(id);
    const place = written.findIndex((id, index) => index > 0 && written.indexOf(id) === index);
    const endTokens = [4000, written[place] as number];
    const [answer] = await writeAnswers(model, tokenizer, [request(prompt)], {
      ...{ batch: 1, maxLength: 64, endTokens },
    });
    const text = tokenizer.decode(written.slice(0, place + 1));
    expect(answer).toEqual({ text, tokens: place + 1, cutTokens: 0 });
    const scorer = new Scorer(model, tokenizer, { endTokens });
    expect(await scorer.answers([request(prompt)])).toEqual([answer]);
    expect(() => new Scorer(model, tokenizer, { endTokens: ["x"] as never })).toThrow(
      /expected an array of token ids for endTokens/,
    );
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
