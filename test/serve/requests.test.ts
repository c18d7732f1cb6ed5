// Requests as no well-behaved client sends them, and the routes beside OpenAI's.
import { request as send } from "node:http";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ArgumentError, UsageError } from "../../lib/core/errors.js";
import type { Tokenizer } from "../../lib/data/tokenizer.js";
import { Engine } from "../../lib/generate/engine.js";
import type { Llama } from "../../lib/model/llama.js";
import { serve } from "../../lib/serve/server.js";
import { allOf, open, post, rawSocket, type Served, served, tinyModel, until } from "./support.js";

let parts: [Llama, Tokenizer];
let server: Served;
beforeAll(async () => {
  parts = await tinyModel();
  server = await served(parts, {
    maxBodyBytes: 20_000,
    headerSeconds: 0.4,
    requestSeconds: 0.8,
  });
});
afterAll(async () => {
  expect(server.errors).toEqual([]);
  expect(server.engine.state).toMatchObject({ running: 0, waiting: 0 });
  expect(server.engine.state.freePages).toBe(server.engine.state.pages);
  await server.close();
  parts[0].dispose();
});

const completions = () => `${server.url}/v1/completions`;
const works = async (): Promise<void> => {
  expect((await post(completions(), { prompt: "a", max_tokens: 1 })).status).toBe(200);
};

describe("paths", () => {
  test("that are unknown are answered with those that exist", async () => {
    for (const path of ["/v1", "/v1/embeddings", "/../etc/passwd", "//", "/v1/models/"]) {
      const response = await fetch(`${server.url}${path}`);
      expect(response.status).toBe(404);
      const { error } = (await response.json()) as { error: { message: string; code: string } };
      expect(error.message).toContain("/v1/chat/completions");
      expect(error.code).toBe("not_found");
    }
  });

  test("refuse other methods, and say which they have", async () => {
    const wrong = await fetch(completions());
    expect([wrong.status, wrong.headers.get("allow")]).toEqual([405, "POST"]);
    const models = await fetch(`${server.url}/v1/models`, { method: "DELETE" });
    expect([models.status, models.headers.get("allow")]).toEqual([405, "GET, HEAD"]);
    expect((await fetch(`${server.url}/health`, { method: "HEAD" })).status).toBe(200);
  });

  test("/tokenize and /detokenize are inverse, also of a chat", async () => {
    const prompt = "Hello, wörld! 😀";
    const { json } = await post(`${server.url}/tokenize`, { prompt });
    expect(json).toEqual({
      tokens: await server.engine.encode(prompt),
      count: json.tokens.length,
      max_model_len: 256,
    });
    const back = await post(`${server.url}/detokenize`, { tokens: json.tokens });
    expect(back.json.prompt).toBe(prompt);
    const messages = [{ role: "user", content: "Hi" }];
    const chat = await post(`${server.url}/tokenize`, { messages });
    const text = await post(`${server.url}/detokenize`, { tokens: chat.json.tokens });
    expect(text.json.prompt).toBe("[user] Hi\n[assistant] ");
    const wrong = await post(`${server.url}/detokenize`, { tokens: [10 ** 8] });
    expect(wrong.status).toBe(400);
  });

  test("/metrics has the engine's figures and the requests' latencies", async () => {
    await post(completions(), { prompt: "a", max_tokens: 4, ignore_eos: true });
    const response = await fetch(`${server.url}/metrics`);
    expect(response.headers.get("content-type")).toContain("text/plain");
    const text = await response.text();
    const value = (name: string) =>
      Number(new RegExp(`^llamaforge_${name} (\\S+)$`, "m").exec(text)?.[1]);
    const { state } = server.engine;
    expect(value("cache_pages")).toBe(state.pages);
    expect(value("cache_pages_free")).toBe(state.freePages);
    expect(value("written_tokens_total")).toBe(state.writtenTokens);
    expect(value("queue")).toBe(0);
    expect(value("batch")).toBe(0);
    expect(value("connections")).toBeGreaterThan(0);
    expect(value("tokens_per_second")).toBeGreaterThanOrEqual(0);
    for (const name of ["first_token_seconds", "between_tokens_seconds", "request_seconds"]) {
      expect(text).toContain(`# TYPE llamaforge_${name} histogram`);
    }
    expect(value('first_token_seconds_count{route="/v1/completions"}')).toBeGreaterThan(0);
    const labels = 'route="/v1/completions"}';
    const between = value(`between_tokens_seconds_count{${labels}`);
    expect(between).toBeGreaterThan(0);
    expect(value(`between_tokens_seconds_bucket{le="\\+Inf",${labels}`)).toBe(between);
    expect(value(`between_tokens_seconds_bucket{le="0.001",${labels}`)).toBeLessThanOrEqual(
      between,
    );
    expect(value(`between_tokens_seconds_sum{${labels}`)).toBeGreaterThan(0);
    expect(text).toContain('llamaforge_http_requests_total{route="other",status="404"}');
  });
});

describe("bodies", () => {
  const deep = (open: string, close: string, n: number) => open.repeat(n) + close.repeat(n);
  test.each([
    ["", 400],
    ["{", 400],
    ['{"prompt": "a"', 400],
    ["null", 400],
    ["[]", 400],
    ['"text"', 400],
    ["NaN", 400],
    [`{"prompt": ${deep("[", "]", 5000)}}`, 400],
    [`{"x": ${deep('{"a":', "}", 3000).replace(":}", ":1}")}}`, 400],
    [`{"prompt": "${"[{".repeat(40)}", "max_tokens": 1}`, 200],
    [`{"prompt": "\\"${"[".repeat(90)}", "max_tokens": 1}`, 200],
    ['{"__proto__": {"max_tokens": 1}, "prompt": "a"}', 400],
    ['{"constructor": 1}', 400],
    ['{"toString": 1}', 400],
    ['{"prompt": {"a": 1}}', 400],
    ['{"prompt": [1, "a"]}', 400],
    ['{"prompt": [[1], "a"]}', 400],
    ['{"prompt": [[]]}', 400],
    ['{"prompt": [-1]}', 400],
    ['{"prompt": [1e99]}', 400],
    ['{"prompt": [4096]}', 400],
    ['{"prompt": "a", "n": 1e9}', 400],
    ['{"prompt": "a", "max_tokens": -1}', 400],
    ['{"prompt": "a", "max_tokens": "5"}', 400],
    ['{"prompt": "a", "seed": 0.5}', 400],
    ['{"prompt": "a", "stop": [""]}', 400],
    ['{"prompt": "a", "stop": {}}', 400],
    ['{"prompt": "a", "stop": "\\ud83d"}', 400],
    ['{"prompt": "a", "stop": ["x", "a\\ude00b"]}', 400],
    ['{"prompt": "a", "stop": "\\ud83d\\ude00", "max_tokens": 1}', 200],
    ['{"prompt": "a", "stop": "\\n", "max_tokens": 1}', 200],
    ['{"prompt": "a", "logit_bias": {"05": 1}}', 400],
    ['{"prompt": "a", "logit_bias": {"0": 1}, "max_tokens": 1}', 200],
    ['{"prompt": "a", "logit_bias": {"5": "x"}}', 400],
    ['{"prompt": "a", "logit_bias": {"4099": 1}}', 400],
    ['{"prompt": "a", "logprobs": true}', 400],
    ['{"prompt": "a", "stream": "yes"}', 400],
    ['{"prompt": "a", "stream_options": {"x": 1}}', 400],
    ['{"prompt": "\\ud800", "max_tokens": 1}', 200],
    ['{"prompt": "\\u0000", "max_tokens": 1}', 200],
    ['{"prompt": ["a", "b"], "n": 100}', 400],
  ])("%s", async (body, status) => {
    const answer = await post(completions(), body);
    expect(answer.status, JSON.stringify(answer.json)).toBe(status);
    if (status === 200) return;
    expect(answer.json.error.type).toBe("invalid_request_error");
    expect(answer.json.error.message.length).toBeLessThan(600);
  });

  test("of thousands of wrong fields or values are refused as fast as of one", async () => {
    const many = Object.fromEntries(Array.from({ length: 2000 }, (_, i) => [`f${i}`, 1]));
    const started = performance.now();
    expect((await post(completions(), many)).status).toBe(400);
    const prompt = Array.from({ length: 4000 }, () => -1);
    expect((await post(completions(), { prompt })).status).toBe(400);
    expect(performance.now() - started).toBeLessThan(2000);
  });

  test("of megabytes take no longer than their size asks for", async () => {
    const large = await served(parts, { maxBodyBytes: 4e6 });
    const bodies = [
      `{"prompt": "${"a".repeat(3.9e6)}`,
      `{"prompt": "${'\\"'.repeat(1.9e6)}`,
      `${'"a",'.repeat(0.9e6)}`,
      `{"prompt": [${"1,".repeat(1.9e6)}1]}`,
      `{"stop": [${'"a",'.repeat(0.9e6)}"a"]}`,
      `{"logit_bias": {${'"1": 1,'.repeat(0.5e6)}"1": 999}}`,
      `{${'"a": 1,'.repeat(0.5e6)}"a": 1}`,
    ];
    for (const body of bodies) {
      const started = performance.now();
      expect((await post(`${large.url}/v1/completions`, body)).status).toBe(400);
      expect(performance.now() - started).toBeLessThan(5000);
    }
    const tokens = `{"tokens": [${"1,".repeat(1.9e6)}1]}`;
    expect((await post(`${large.url}/detokenize`, tokens)).status).toBe(400);
    await large.close();
  });

  test("that are too large are refused, told or not, and the connection ends", async () => {
    const told = await post(completions(), JSON.stringify({ prompt: "a".repeat(30_000) }));
    expect([told.status, told.json.error.code]).toEqual([413, "body_too_large"]);
    expect(told.headers.get("connection")).toBe("close");
    const request = send(completions(), {
      method: "POST",
      headers: { "content-type": "application/json", "transfer-encoding": "chunked" },
    });
    const status = new Promise((resolve, reject) => {
      request.on("response", ({ statusCode }) => resolve(statusCode));
      request.on("error", reject);
    });
    request.write(`{"prompt": "${"a".repeat(30_000)}`);
    expect(await status).toBe(413);
    request.destroy();
  });

  test("name the field that has ids beyond the vocabulary", async () => {
    for (const [path, body, param] of [
      ["/v1/completions", { prompt: [[1], [99999]] }, "prompt"],
      ["/v1/completions", { prompt: "a", stop_token_ids: [99999] }, "stop_token_ids"],
      ["/detokenize", { tokens: [99999] }, "tokens"],
    ] as const) {
      const { status, json } = await post(`${server.url}${path}`, body);
      expect([status, json.error.param, json.error.code]).toEqual([400, param, "invalid_value"]);
    }
  });

  test("of another type or encoding are refused", async () => {
    const body = '{"prompt": "a"}';
    expect((await post(completions(), body, { "content-type": "text/plain" })).status).toBe(415);
    expect((await post(completions(), body, { "content-encoding": "gzip" })).status).toBe(415);
    const bytes = Buffer.concat([
      Buffer.from('{"prompt": "'),
      Buffer.from([0xff]),
      Buffer.from('"}'),
    ]);
    const headers = { "content-type": "application/json; charset=utf-8" };
    const broken = await fetch(completions(), { method: "POST", headers, body: bytes });
    expect(broken.status).toBe(400);
  });
});

describe("connections", () => {
  test("that send no HTTP are told so", async () => {
    const socket = await rawSocket(server.url);
    socket.write("\x16\x03\x01 hello\r\n\r\n");
    expect(await allOf(socket)).toMatch(/^HTTP\/1.1 400 Bad Request\r\n[\s\S]*"bad_request"/);
    const large = await rawSocket(server.url);
    large.write(`GET / HTTP/1.1\r\nhost: localhost\r\nx: ${"a".repeat(20_000)}\r\n\r\n`);
    expect(await allOf(large)).toMatch(/^HTTP\/1.1 431 /);
    await works();
  });

  test("that send headers or a body too slowly are ended", async () => {
    const slow = await Promise.all(Array.from({ length: 20 }, () => rawSocket(server.url)));
    const ends = slow.map(allOf);
    for (const [i, socket] of slow.entries()) {
      socket.write("POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n");
      if (i % 2 === 0) continue;
      socket.write("content-type: application/json\r\ncontent-length: 100\r\n\r\n{");
      const timer = setInterval(() => socket.write(" "), 100);
      socket.once("close", () => clearInterval(timer));
    }
    const started = performance.now();
    for (const text of await Promise.all(ends)) expect(text).toMatch(/^HTTP\/1.1 408 /);
    expect(performance.now() - started).toBeLessThan(5000);
    await works();
  });

  test("that leave within their request leave nothing behind", async () => {
    for (const text of ["POST /v1/comp", "POST /v1/completions HTTP/1.1\r\nhost: a\r\n\r\n"]) {
      (await rawSocket(server.url)).end(text).destroy();
    }
    const { request } = open(server.url, "/v1/completions", { prompt: "a", max_tokens: 200 });
    request.destroy();
    await until(() => server.engine.state.running === 0);
    await works();
  });

  test("beyond the number allowed are closed", async () => {
    const small = await served(parts, { maxConnections: 3 });
    const first = await Promise.all([1, 2, 3].map(() => rawSocket(small.url)));
    const further = await Promise.all(Array.from({ length: 30 }, () => rawSocket(small.url)));
    expect(await Promise.all(further.map(allOf))).toEqual(Array(30).fill(""));
    first[0]?.destroy();
    await until(() => first[0]?.closed === true);
    await new Promise((resolve) => setTimeout(resolve, 50));
    const answer = await post(`${small.url}/tokenize`, { prompt: "a" });
    expect(answer.status).toBe(200);
    for (const socket of first) socket.destroy();
    await small.close();
  });
});

test("a full queue answers 429 and when to come again", async () => {
  const small = await served(parts, {}, { maxBatch: 1, maxQueue: 1 });
  const ask = { prompt: "a", max_tokens: 60, ignore_eos: true };
  const url = `${small.url}/v1/completions`;
  const answers = await Promise.all(
    Array.from({ length: 12 }, (_, i) => post(url, { ...ask, stream: i < 0 })),
  );
  const refused = answers.filter(({ status }) => status === 429);
  expect(answers.filter(({ status }) => status === 200).length).toBeGreaterThan(0);
  expect(refused.length).toBeGreaterThan(0);
  for (const { headers, json } of refused) {
    expect(headers.get("retry-after")).toBe("1");
    expect(json.error).toMatchObject({ type: "rate_limit_error", code: "queue_full" });
  }
  const stream = await post(url, { ...ask, max_tokens: 1 });
  expect(stream.status).toBe(200);
  await small.close();
});

describe("access", () => {
  test("needs a key where keys are set, but for the page and the health", async () => {
    const closed = await served(parts, { apiKeys: ["sesame", "ключ"] });
    const status = async (path: string, headers: Record<string, string> = {}) =>
      (await fetch(`${closed.url}${path}`, { headers })).status;
    for (const path of ["/v1/models", "/metrics"]) {
      expect(await status(path)).toBe(401);
      for (const wrong of ["Bearer sesam", "Bearer sesame ", "Basic sesame", "sesame", "Bearer"]) {
        const allowed = wrong === "Bearer sesame " ? 200 : 401; // fetch trims the header
        expect(await status(path, { authorization: wrong }), wrong).toBe(allowed);
      }
      expect(await status(path, { authorization: "bearer sesame" })).toBe(200);
    }
    expect(await status("/health")).toBe(200);
    expect(await status("/")).toBe(200);
    // With keys, a server may have any name.
    expect(await statusAs(closed.url, "models.example.org")).toBe(401);
    await closed.close();
  });

  /** The status for a request under another name; fetch does not send one. */
  const statusAs = async (url: string, host: string): Promise<number | undefined> =>
    await new Promise((resolve, reject) => {
      const request = send(`${url}/v1/models`, { headers: { host }, agent: false });
      request.on("response", (response) => {
        response.resume();
        resolve(response.statusCode);
      });
      request.on("error", reject);
      request.end();
    });

  test("under a foreign name is refused without keys: pages could rebind theirs", async () => {
    expect(await statusAs(server.url, "attacker.example:8000")).toBe(403);
    for (const own of ["localhost:1", "127.0.0.1", "[::1]:8000", "my.localhost"]) {
      expect(await statusAs(server.url, own), own).toBe(200);
    }
  });

  test("of other origins is off, and on for those that are named", async () => {
    const from = (origin: string) => ({ headers: { origin } });
    const off = await fetch(`${server.url}/v1/models`, from("https://a.example"));
    expect(off.headers.get("access-control-allow-origin")).toBeNull();
    const on = await served(parts, { corsOrigins: ["https://a.example"] });
    const named = await fetch(`${on.url}/v1/models`, from("https://a.example"));
    expect(named.headers.get("access-control-allow-origin")).toBe("https://a.example");
    expect(named.headers.get("vary")).toBe("origin");
    const other = await fetch(`${on.url}/v1/models`, from("https://b.example"));
    expect(other.headers.get("access-control-allow-origin")).toBeNull();
    const preflight = await fetch(`${on.url}/v1/completions`, {
      method: "OPTIONS",
      headers: {
        origin: "https://a.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,x-stainless-os",
      },
    });
    expect(preflight.status).toBe(204);
    expect(preflight.headers.get("access-control-allow-headers")).toContain("x-stainless-os");
    await on.close();
  });
});

describe("a server", () => {
  test("is refused with wrong options, and where its port is taken", async () => {
    const { engine } = server;
    for (const [given, options] of [
      [null, {}],
      [engine, null],
      [engine, { port: -1 }],
      [engine, { port: "80" }],
      [engine, { ports: 1 }],
      [engine, { apiKeys: [""] }],
      [engine, { onError: 1 }],
      [engine, { stallSeconds: 0 }],
    ] as const) {
      await expect(serve(given as never, options as never)).rejects.toThrow(ArgumentError);
    }
    const port = Number(new URL(server.url).port);
    await expect(serve(engine, { port })).rejects.toThrow(UsageError);
    const plain = new Engine(parts[0], null, { pageSize: 32, maxBatch: 1 });
    await expect(serve(plain, { port: 0 })).rejects.toThrow(ArgumentError);
    plain.dispose();
  });

  test("of a model without a chat template says so, and completes texts", async () => {
    const plain = await served(parts, {}, { chatTemplate: null });
    const messages = [{ role: "user", content: "a" }];
    const { status, json } = await post(`${plain.url}/v1/chat/completions`, { messages });
    expect(status).toBe(400);
    expect(json.error).toMatchObject({ param: "messages", code: "no_chat_template" });
    // Clients hear nothing of the server's files.
    expect(json.error.message).not.toContain("/quickstart");
    expect((await post(`${plain.url}/tokenize`, { messages })).json.error).toEqual(json.error);
    const models = (await (await fetch(`${plain.url}/v1/models`)).json()) as { data: object[] };
    expect(models.data[0]).toMatchObject({ chat: false });
    await plain.close();
  });

  test("hides the messages of its own faults, and tells them to its owner", async () => {
    const broken = await served(parts);
    Object.defineProperty(broken.engine, "encode", {
      value: async () => {
        throw new TypeError("/home/secret is undefined");
      },
    });
    const answer = await post(`${broken.url}/v1/completions`, { prompt: "a" });
    expect(answer.status).toBe(500);
    expect(JSON.stringify(answer.json)).not.toContain("secret");
    expect(broken.errors.map(String)).toEqual(["TypeError: /home/secret is undefined"]);
    await broken.close();
  });
});
