// Answers whose readers leave, wait or dawdle, and the end of a server.
import { once } from "node:events";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Tokenizer } from "../../lib/data/tokenizer.js";
import type { Llama } from "../../lib/model/llama.js";
import { allOf, open, post, rawSocket, type Served, served, tinyModel, until } from "./support.js";

let parts: [Llama, Tokenizer];
beforeAll(async () => {
  parts = await tinyModel(1024);
});
afterAll(() => parts[0].dispose());

const long = { prompt: "a", max_tokens: 1000, ignore_eos: true };

/** Many bytes for few steps: a prompt with its likeliest tokens, again and again. */
const large = {
  prompt: Array.from({ length: 250 }, (_, i) => 300 + i),
  max_tokens: 1,
  n: 100,
  echo: true,
  logprobs: 20,
  ignore_eos: true,
};

const isFree = ({ engine: { state } }: Served): boolean =>
  state.running === 0 && state.waiting === 0 && state.freePages === state.pages;

const goneOf = async ({ url }: Served): Promise<number> => {
  const text = await (await fetch(`${url}/metrics`)).text();
  return Number(/^llamaforge_clients_gone_total (\d+)$/m.exec(text)?.[1]);
};

describe("a client that leaves", () => {
  test.each([
    ["in mid-stream", { ...long, stream: true }],
    ["in mid-stream of many answers", { ...long, stream: true, n: 5 }],
    ["before its whole answer", long],
  ])("%s gives its pages back within a few steps", async (_, body) => {
    const server = await served(parts);
    const { request, response } = open(server.url, "/v1/completions", body);
    if ("stream" in body) await once(await response, "data");
    else await until(() => server.engine.state.writtenTokens > 3);
    expect(isFree(server)).toBe(false);
    const { steps } = server.engine.state;
    request.destroy();
    await until(() => isFree(server));
    // The rest of the answer would have been hundreds of steps.
    expect(server.engine.state.steps - steps).toBeLessThan(100);
    expect(await goneOf(server)).toBe(1);
    expect(server.errors).toEqual([]);
    await server.close();
  });

  test("while it waits leaves the queue", async () => {
    const server = await served(parts, {}, { maxBatch: 1 });
    const first = open(server.url, "/v1/completions", { ...long, stream: true });
    await once(await first.response, "data");
    const waiting = open(server.url, "/v1/completions", long);
    await until(() => server.engine.state.waiting === 1);
    waiting.request.destroy();
    await until(() => server.engine.state.waiting === 0);
    expect(server.engine.state.running).toBe(1);
    first.request.destroy();
    await until(() => isFree(server));
    await server.close();
  });
});

describe("a reader", () => {
  test("that takes nothing is cut off, and its answers end", async () => {
    const server = await served(parts, { stallSeconds: 0.3 });
    const stalled = open(server.url, "/v1/completions", { ...large, stream: true });
    const response = await stalled.response;
    const whole = open(server.url, "/v1/completions", large);
    const wholeResponse = await whole.response;
    // Neither is read.
    while ((await goneOf(server)) < 2) await new Promise((resolve) => setTimeout(resolve, 50));
    expect(isFree(server)).toBe(true);
    for (const one of [response, wholeResponse]) {
      one.resume();
      await expect(once(one, "end")).rejects.toThrow("aborted");
    }
    expect(await goneOf(server)).toBe(2);
    await server.close();
  });

  test("that is slow but reads gets everything", async () => {
    const server = await served(parts, { stallSeconds: 0.3 });
    const { response } = open(server.url, "/v1/completions", { ...large, stream: true });
    let bytes = 0;
    let end = "";
    for await (const chunk of await response) {
      bytes += (chunk as Buffer).length;
      end = (end + chunk).slice(-40);
      if (Math.floor(bytes / 1e6) > Math.floor((bytes - chunk.length) / 1e6)) {
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    }
    expect(bytes).toBeGreaterThan(10e6);
    expect(end).toMatch(/data: \[DONE\]\n\n$/);
    expect(await goneOf(server)).toBe(0);
    await server.close();
  });
});

describe("a server that closes", () => {
  test("lets answers end, and takes no new requests", async () => {
    const server = await served(parts, { drainSeconds: 30 });
    const ask = { ...long, max_tokens: 300, stream: true };
    const { response } = open(server.url, "/v1/completions", ask);
    const stream = await response;
    await once(stream, "data");
    const closing = server.close();
    await expect(post(`${server.url}/v1/completions`, long)).rejects.toThrow("fetch failed");
    let text = "";
    for await (const chunk of stream) text += chunk;
    expect(text).toMatch(/"finish_reason":"length"/);
    expect(text).toMatch(/data: \[DONE\]\n\n$/);
    await closing;
    await server.close();
  });

  test("does not wait for connections that have sent nothing", async () => {
    const server = await served(parts, { drainSeconds: 30, headerSeconds: 30 });
    const socket = await rawSocket(server.url);
    const ended = allOf(socket);
    await fetch(`${server.url}/health`);
    const start = performance.now();
    await server.close();
    expect(performance.now() - start).toBeLessThan(5000);
    expect(await ended).toBe("");
  });

  test("cuts answers off that take longer than it waits", async () => {
    const server = await served(parts, { drainSeconds: 0.1 });
    const ask = { ...long, stream: true, n: 8 };
    const { response } = open(server.url, "/v1/completions", ask);
    const stream = await response;
    await once(stream, "data");
    const ended = once(stream.resume(), "end");
    ended.catch(() => {});
    await server.close();
    await expect(ended).rejects.toThrow("aborted");
    expect(isFree(server)).toBe(true);
  });

  test("ends streams with an error's event if the engine fails", async () => {
    const server = await served(parts);
    const { response } = open(server.url, "/v1/completions", { ...long, stream: true });
    const stream = await response;
    await once(stream, "data");
    let text = "";
    stream.on("data", (chunk) => {
      text += chunk;
    });
    server.engine.dispose();
    await once(stream, "end");
    const events = text.trim().split("\n\n");
    expect(JSON.parse((events.at(-1) as string).slice(6)).error.message).toContain("disposed");
    await server.close();
  });
});
