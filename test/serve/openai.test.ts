// The official client of OpenAI's interface against a real server.
import OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Tokenizer } from "../../lib/data/tokenizer.js";
import type { Llama } from "../../lib/model/llama.js";
import { type Served, served, tinyModel } from "./support.js";

let parts: [Llama, Tokenizer];
let server: Served;
let client: OpenAI;
const model = "tiny";
beforeAll(async () => {
  parts = await tinyModel();
  server = await served(parts, { modelName: model, apiKeys: ["first", "second"] });
  client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "second", maxRetries: 0 });
});
afterAll(async () => {
  expect(server.errors).toEqual([]);
  await server.close();
  parts[0].dispose();
});

const extras = { ignore_eos: true } as object;
const messages = [
  { role: "system" as const, content: "Be brief." },
  { role: "user" as const, content: "Hello?" },
];

describe("completions", () => {
  test("are the engine's answers, with their usage", async () => {
    const options = { maxTokens: 12, temperature: 0, ignoreEnd: true, n: 1 as const };
    const expected = await server.engine.complete("Once upon", options);
    const answer = await client.completions.create({
      model,
      prompt: "Once upon",
      max_tokens: 12,
      temperature: 0,
      ...extras,
    });
    expect(answer).toMatchObject({ object: "text_completion", model });
    expect(answer.id).toMatch(/^cmpl-/);
    expect(answer.choices).toEqual([
      { text: expected.text, index: 0, logprobs: null, finish_reason: "length" },
    ]);
    const prompt = (await server.engine.encode("Once upon")).length;
    expect(answer.usage).toEqual({
      prompt_tokens: prompt,
      completion_tokens: 12,
      total_tokens: prompt + 12,
    });
  });

  test("have 16 tokens at most unless told, and other tokens each time without a seed", async () => {
    const ask = { model, prompt: "x", ...extras };
    const [one, two, three] = await Promise.all([
      client.completions.create(ask),
      client.completions.create(ask),
      client.completions.create({ ...ask, seed: 4 }),
    ]);
    expect(one.usage?.completion_tokens).toBe(16);
    expect(one.choices[0]?.text).not.toBe(two.choices[0]?.text);
    const again = await client.completions.create({ ...ask, seed: 4 });
    expect(again.choices).toEqual(three.choices);
  });

  test("take texts, ids and lists of both, n for each, in order", async () => {
    const ids = await server.engine.encode("two words");
    const ask = { model, max_tokens: 5, temperature: 0, ...extras };
    const text = async (prompt: string | number[]) =>
      (await client.completions.create({ ...ask, prompt })).choices[0]?.text;
    const [one, two] = [await text("one"), await text("two words")];
    expect(await text(ids)).toBe(two);
    const texts = await client.completions.create({ ...ask, prompt: ["one", "two words"], n: 2 });
    expect(texts.choices.map((choice) => choice.text)).toEqual([one, one, two, two]);
    expect(texts.choices.map(({ index }) => index)).toEqual([0, 1, 2, 3]);
    const lists = await client.completions.create({ ...ask, prompt: [ids, ids] });
    expect(lists.choices.map((choice) => choice.text)).toEqual([two, two]);
  });

  test("stop before a text", async () => {
    const ask = { model, prompt: "text", max_tokens: 60, seed: 5, ...extras };
    const [whole] = (await client.completions.create(ask)).choices;
    const stop = whole?.text.slice(20, 24) as string;
    const [cut] = (await client.completions.create({ ...ask, stop: ["never", stop] })).choices;
    expect(cut?.text).toBe(whole?.text.slice(0, whole.text.indexOf(stop)));
    expect(cut?.finish_reason).toBe("stop");
    const [single] = (await client.completions.create({ ...ask, stop })).choices;
    expect(single?.text).toBe(cut?.text);
  });

  test("stream the parts of the whole answer, and the usage at the end if asked", async () => {
    const ask = { model, prompt: ["one", "two"], n: 2, max_tokens: 9, seed: 3, ...extras };
    const whole = await client.completions.create(ask);
    const stream = await client.completions.create({
      ...ask,
      stream: true,
      stream_options: { include_usage: true },
    });
    const texts = ["", "", "", ""];
    const reasons: unknown[] = [];
    let usage: unknown = null;
    for await (const chunk of stream) {
      expect(chunk.object).toBe("text_completion");
      if (chunk.choices.length === 0) usage = chunk.usage;
      else expect(chunk.usage).toBeNull();
      for (const choice of chunk.choices) {
        texts[choice.index] += choice.text;
        if (choice.finish_reason) reasons[choice.index] = choice.finish_reason;
      }
    }
    expect(texts).toEqual(whole.choices.map(({ text }) => text));
    expect(reasons).toEqual(whole.choices.map(({ finish_reason }) => finish_reason));
    expect(usage).toEqual(whole.usage);
  });

  test("give log-probabilities, the token's own among the likeliest", async () => {
    const answer = await client.completions.create({
      model,
      prompt: "abc",
      max_tokens: 6,
      seed: 1,
      logprobs: 3,
      ...extras,
    });
    const [choice] = answer.choices;
    const {
      tokens = [],
      token_logprobs = [],
      top_logprobs = [],
      text_offset,
    } = choice?.logprobs ?? {};
    expect(tokens).toHaveLength(6);
    for (const [i, token] of tokens.entries()) {
      const top = top_logprobs[i] as Record<string, number>;
      expect(top[token]).toBeCloseTo(token_logprobs[i] as number, 4);
      expect([3, 4]).toContain(Object.keys(top).length);
    }
    expect(text_offset?.[0]).toBe(0);
    expect(text_offset).toEqual(text_offset?.toSorted((a, b) => a - b));
  });

  test("echo the prompt with its log-probabilities, also without an answer", async () => {
    const prompt = "Once upon a time";
    const ids = await server.engine.encode(prompt);
    const ask = { model, prompt, echo: true, logprobs: 1, temperature: 0, ...extras };
    const [only] = (await client.completions.create({ ...ask, max_tokens: 0 })).choices;
    expect(only?.text).toBe(prompt);
    const scored = await server.engine.score(prompt, { top: 1 });
    expect(only?.logprobs?.token_logprobs).toEqual(scored.map(({ logprob }) => logprob));
    expect(only?.logprobs?.top_logprobs?.[0]).toBeNull();
    const [more] = (await client.completions.create({ ...ask, max_tokens: 4 })).choices;
    expect(more?.text.startsWith(prompt)).toBe(true);
    expect(more?.logprobs?.tokens).toHaveLength(ids.length + 4);
    const stream = await client.completions.create({ ...ask, max_tokens: 4, stream: true });
    let text = "";
    const tokens: string[] = [];
    for await (const { choices } of stream) {
      text += choices[0]?.text;
      tokens.push(...(choices[0]?.logprobs?.tokens ?? []));
    }
    expect([text, tokens]).toEqual([more?.text, more?.logprobs?.tokens]);
  });

  test("obey biases and penalties", async () => {
    const ask = { model, prompt: "abc", max_tokens: 20, temperature: 0, ...extras };
    const [biased] = (await client.completions.create({ ...ask, logit_bias: { 68: 100 } })).choices;
    expect(biased?.text).toBe("A".repeat(20));
    const [spread] = (
      await client.completions.create({
        ...ask,
        logit_bias: { 68: 100, 69: 99 },
        frequency_penalty: 2,
        max_tokens: 4,
      })
    ).choices;
    expect(spread?.text).toBe("ABAB");
  });
});

describe("chats", () => {
  test("are answers to the template's text", async () => {
    const ids = await server.engine.encodeChat(messages);
    const expected = await server.engine.complete(ids, {
      maxTokens: 10,
      temperature: 0,
      n: 1,
      ignoreEnd: true,
    });
    const ask = { model, messages, temperature: 0, ...extras };
    const answer = await client.chat.completions.create({ ...ask, max_completion_tokens: 10 });
    expect(answer.choices).toEqual([
      {
        index: 0,
        message: { role: "assistant", content: expected.text, refusal: null },
        logprobs: null,
        finish_reason: "length",
      },
    ]);
    expect(answer.usage?.prompt_tokens).toBe(ids.length);
    const inParts = messages.map(({ role, content }) => ({
      role,
      content: [{ type: "text" as const, text: content }],
    }));
    const same = await client.chat.completions.create({
      ...ask,
      messages: inParts,
      max_tokens: 10,
    });
    expect(same.choices).toEqual(answer.choices);
    // Without a limit, the answer may fill the context.
    const long = await client.chat.completions.create(ask);
    expect(long.usage?.total_tokens).toBe(server.engine.maxLength);
  });

  test("stream, with the role first", async () => {
    const ask = { model, messages, max_tokens: 12, seed: 9, n: 2, ...extras };
    const whole = await client.chat.completions.create(ask);
    const texts = ["", ""];
    const roles: unknown[] = [];
    const stream = await client.chat.completions.create({
      ...ask,
      stream: true,
      stream_options: { include_usage: true },
    });
    let usage: unknown = null;
    for await (const { choices, usage: told } of stream) {
      if (told) usage = told;
      for (const { index, delta } of choices) {
        if (delta.role) roles[index] = delta.role;
        texts[index] += delta.content ?? "";
      }
    }
    expect(texts).toEqual(whole.choices.map(({ message }) => message.content));
    expect(roles).toEqual(["assistant", "assistant"]);
    expect(usage).toEqual(whole.usage);
    const helper = client.chat.completions.stream(ask);
    const final = await helper.finalChatCompletion();
    expect(final.choices.map(({ message }) => message.content)).toEqual(texts);
  });

  test("give log-probabilities with the tokens' bytes", async () => {
    const answer = await client.chat.completions.create({
      model,
      messages,
      max_tokens: 30,
      seed: 2,
      logprobs: true,
      top_logprobs: 2,
      ...extras,
    });
    const [choice] = answer.choices;
    const content = choice?.logprobs?.content ?? [];
    expect(content).toHaveLength(30);
    const bytes = Buffer.from(content.flatMap((token) => token.bytes ?? []));
    expect(bytes.toString("utf8").trimStart()).toBe(choice?.message.content?.trimStart());
    for (const { top_logprobs, logprob } of content) {
      expect(top_logprobs).toHaveLength(2);
      expect(logprob).toBeLessThanOrEqual((top_logprobs[0]?.logprob as number) + 1e-4);
    }
  });
});

test("the model is listed", async () => {
  const list = await client.models.list();
  expect(list.data.map(({ id }) => id)).toEqual([model]);
  expect(await client.models.retrieve(model)).toMatchObject({ id: model, object: "model" });
  await expect(client.models.retrieve("other")).rejects.toBeInstanceOf(OpenAI.NotFoundError);
});

describe("errors have the client's classes", () => {
  const refused = async (change: object) => {
    const ask = { model, messages, max_tokens: 3, ...change };
    return await client.chat.completions.create(ask as never).then(
      () => null,
      (error: unknown) => error as InstanceType<typeof OpenAI.APIError>,
    );
  };

  test.each([
    [{ tools: [{ type: "function" }] }, "tools", "unsupported_parameter"],
    [{ response_format: { type: "json_object" } }, "response_format", "unsupported_parameter"],
    [{ temperature: -1 }, "temperature", "invalid_value"],
    [{ temperature: "hot" }, "temperature", "invalid_value"],
    [{ top_logprobs: 3 }, "top_logprobs", "invalid_value"],
    [{ logit_bias: { a: 1 } }, "logit_bias", "invalid_value"],
    [{ logit_bias: { 99999: 1 } }, "logit_bias", "invalid_value"],
    [{ stop_token_ids: [99999] }, "stop_token_ids", "invalid_value"],
    [{ tempreature: 1 }, "tempreature", "unknown_parameter"],
    [{ messages: [] }, "messages", "invalid_value"],
    [{ messages: undefined }, "messages", "missing_parameter"],
    [
      { messages: [{ role: "user", content: [{ type: "image_url", image_url: { url: "x" } }] }] },
      "messages[0].content[0]",
      "invalid_value",
    ],
    [
      { messages: [{ role: "user", content: "long ".repeat(900) }] },
      "messages",
      "context_length_exceeded",
    ],
  ])("%j", async (change, param, code) => {
    const error = await refused(change);
    expect(error).toBeInstanceOf(OpenAI.BadRequestError);
    expect(error).toMatchObject({ status: 400, type: "invalid_request_error", param, code });
    expect(error?.message).toContain(String(param).split("[")[0]);
  });

  test("what asks for nothing is accepted", async () => {
    const neutral = { tools: [], response_format: { type: "text" }, stop: null, user: "me" };
    expect(await refused({ ...neutral, seed: null, logprobs: false })).toBeNull();
    for (const [field, value] of [
      ["suffix", "end"],
      ["best_of", 3],
    ] as const) {
      const asked = client.completions.create({ model, prompt: "a", [field]: value });
      await expect(asked).rejects.toMatchObject({ param: field, code: "unsupported_parameter" });
    }
  });

  test("of another model, and of a wrong key", async () => {
    expect(await refused({ model: "gpt-4" })).toBeInstanceOf(OpenAI.NotFoundError);
    const stranger = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "third", maxRetries: 0 });
    await expect(stranger.models.list()).rejects.toBeInstanceOf(OpenAI.AuthenticationError);
  });
});
