// Server-sent events as bytes: chunks, several tokens in one event, and how often they are sent.
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Tokenizer } from "../../lib/data/tokenizer.js";
import type { Llama } from "../../lib/model/llama.js";
import { EventPump } from "../../lib/serve/event-pump.js";
import { allOf, open, post, rawSocket, type Served, served, tinyModel, until } from "./support.js";

let parts: [Llama, Tokenizer];
let server: Served;
beforeAll(async () => {
  parts = await tinyModel(512);
  server = await served(parts);
});
afterAll(async () => {
  expect(server.errors).toEqual([]);
  await server.close();
  parts[0].dispose();
});

const ask = { prompt: "a", max_tokens: 300, seed: 3, ignore_eos: true };

/** The events of a stream but its last one, which must be `[DONE]`. */
function eventsOf(text: string) {
  const events = text.split("\n\n").map((event) => event.slice("data: ".length));
  expect(events.splice(-2)).toEqual(["[DONE]", ""]);
  return events.map((event) => JSON.parse(event));
}

/** Removes the chunks' frames. */
function unframed(body: string): string {
  let rest = Buffer.from(body, "latin1");
  let text = "";
  for (;;) {
    const end = rest.indexOf("\r\n");
    const length = Number.parseInt(rest.subarray(0, end).toString(), 16);
    const chunk = rest.subarray(end + 2, end + 2 + length);
    expect(rest.subarray(end + 2 + length, end + 4 + length).toString()).toBe("\r\n");
    if (length === 0) return text;
    text += chunk.toString();
    rest = rest.subarray(end + 4 + length);
  }
}

const requestOf = (body: unknown, version = "1.1", headers = "") => {
  const text = JSON.stringify(body);
  return (
    `POST /v1/completions HTTP/${version}\r\nhost: localhost\r\n${headers}` +
    `content-type: application/json\r\ncontent-length: ${Buffer.byteLength(text)}\r\n\r\n${text}`
  );
};

async function exchange(sent: string): Promise<string> {
  const socket = await rawSocket(server.url);
  socket.setEncoding("latin1");
  socket.write(sent);
  return await allOf(socket);
}

describe("a stream", () => {
  const japanese = { ...ask, prompt: "日本 ü 😀", echo: true, max_tokens: 5, stream: true };

  test("is sent in chunks whose lengths are bytes, and its connection goes on", async () => {
    const got = await exchange(
      requestOf(japanese) + requestOf(japanese) + requestOf(ask, "1.1", "connection: close\r\n"),
    );
    const answers = got.split(/(?=HTTP\/1\.1 200 OK\r\n)/);
    expect(answers).toHaveLength(3);
    for (const answer of answers.slice(0, 2)) {
      const [head = "", body = ""] = answer.split(/\r\n\r\n([\s\S]*)/);
      expect(head.match(/transfer-encoding: chunked/gi)).toHaveLength(1);
      const [first] = eventsOf(unframed(body));
      expect(first.choices[0].text).toMatch(/^日本 ü 😀/);
    }
  });

  test("has no chunks for a client of HTTP 1.0, and ends with its connection", async () => {
    const got = await exchange(requestOf(japanese, "1.0"));
    const [head = "", body = ""] = got.split(/\r\n\r\n([\s\S]*)/);
    expect(head).not.toMatch(/transfer-encoding/i);
    const [first] = eventsOf(Buffer.from(body, "latin1").toString());
    expect(first.choices[0].text).toMatch(/^日本 ü 😀/);
  });

  // Answers of megabytes, whose first events fill the connection while the reader waits.
  const prompt = Array.from({ length: 250 }, (_, i) => 300 + i);
  const large = { ...ask, prompt, echo: true, logprobs: 20, max_tokens: 8, n: 100 };
  const messages = [{ role: "user", content: "a" }];
  const chat = { ...ask, prompt: undefined, messages, logprobs: true, max_tokens: 200, n: 3 };
  test.each([
    ["/v1/completions", large],
    ["/v1/chat/completions", chat],
  ])("of %s has all tokens once, also where events have several", async (path, body) => {
    const { json } = await post(`${server.url}${path}`, body);
    const streamed = { ...body, stream: true, stream_options: { include_usage: true } };
    const { response } = open(server.url, path, streamed);
    const stream = (await response).setEncoding("utf8");
    await until(() => server.engine.state.running === 0);
    let text = "";
    for await (const chunk of stream) text += chunk;
    const events = eventsOf(text);
    const usage = events.pop();
    expect([usage.choices, usage.usage]).toEqual([[], json.usage]);
    const { completion_tokens: count } = json.usage;
    expect(count).toBe(body.max_tokens * body.n);
    if (body === large) expect(events.length).toBeLessThan(count / 2);
    for (const whole of json.choices) {
      const own = events.flatMap(({ choices: [choice] }) =>
        choice.index === whole.index ? [choice] : [],
      );
      const texts = own.map((choice) => choice.text ?? choice.delta.content ?? "");
      expect(texts.join("")).toBe(whole.text ?? whole.message.content);
      expect(own.map((choice) => choice.finish_reason).filter(Boolean)).toEqual(["length"]);
      const tokens = own.map(({ logprobs }) => logprobs.tokens ?? logprobs.content);
      expect(tokens.flat()).toEqual(whole.logprobs.tokens ?? whole.logprobs.content);
      if (whole.logprobs.text_offset) {
        expect(own.flatMap(({ logprobs }) => logprobs.text_offset)).toEqual(
          whole.logprobs.text_offset,
        );
      }
    }
  });
});

test("sending takes at most half of the event loop's time, and every reader has its turn", async () => {
  const pump = new EventPump();
  const turns: { reader: number; from: number; to: number }[] = [];
  await new Promise<void>((resolve) => {
    const readers = [0, 1].map((reader) => ({
      pump() {
        const from = performance.now();
        while (performance.now() < from + 10);
        turns.push({ reader, from, to: performance.now() });
        if (turns.length === 10) resolve();
        else if (turns.length < 9) pump.wake(readers[reader] as (typeof readers)[0]);
      },
    }));
    for (const reader of readers) {
      pump.wake(reader);
      pump.wake(reader);
    }
  });
  expect(turns.map(({ reader }) => reader)).toEqual([0, 1, 0, 1, 0, 1, 0, 1, 0, 1]);
  for (let i = 2; i < turns.length; i += 2) {
    const [first, second, next] = turns.slice(i - 2) as [
      (typeof turns)[0],
      (typeof turns)[0],
      (typeof turns)[0],
    ];
    expect(next.from - second.to).toBeGreaterThanOrEqual((second.to - first.from) * 0.95);
  }
});
