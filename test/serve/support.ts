import { type ClientRequest, type IncomingMessage, request as send } from "node:http";
import { type AddressInfo, connect, type Socket } from "node:net";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { ChatTemplate } from "../../lib/generate/chat-template.js";
import { Engine, type NewEngineOptions } from "../../lib/generate/engine.js";
import { Llama } from "../../lib/model/llama.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { type RunningServer, type ServeOptions, serve } from "../../lib/serve/server.js";

export const template =
  "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}" +
  "{% if add_generation_prompt %}[assistant] {% endif %}";

/** An untrained model, in which all tokens are about equally frequent. */
export async function tinyModel(contextLength = 256): Promise<[Llama, Tokenizer]> {
  const tokenizer = await Tokenizer.load("assets/quickstart/tokenizer.json");
  const model = await Llama.create(
    llamaConfig({
      vocabSize: tokenizer.vocabSize + 7,
      hiddenSize: 32,
      intermediateSize: 48,
      layers: 2,
      heads: 2,
      kvHeads: 1,
      contextLength,
      ropeTheta: 10_000,
      rmsNormEps: 1e-5,
      tieEmbeddings: false,
    }),
    { seed: 1 },
  );
  return [model, tokenizer];
}

export interface Served extends RunningServer {
  engine: Engine;
  /** Errors that the server took for its own fault. */
  errors: unknown[];
}

/** A server on a free port. */
export async function served(
  [model, tokenizer]: [Llama, Tokenizer],
  options: ServeOptions = {},
  engineOptions: NewEngineOptions = {},
): Promise<Served> {
  const chatTemplate = ChatTemplate.of(template, tokenizer);
  const engine = new Engine(model, tokenizer, {
    pageSize: 32,
    maxBatch: 8,
    chatTemplate,
    ...engineOptions,
  });
  const errors: unknown[] = [];
  const onError = (error: unknown) => errors.push(error);
  const server = await serve(engine, { port: 0, drainSeconds: 2, onError, ...options });
  const close = async () => {
    await server.close();
    engine.dispose();
    await engine.idle();
  };
  return { url: server.url, close, engine, errors };
}

export interface Answered {
  status: number;
  headers: Headers;
  // biome-ignore lint/suspicious/noExplicitAny: answers of any form
  json: any;
}

/** Sends a JSON body. */
export async function post(
  url: string,
  body: unknown,
  headers: Record<string, string> = {},
): Promise<Answered> {
  const response = await fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: typeof body === "string" ? body : JSON.stringify(body),
  });
  return { status: response.status, headers: response.headers, json: await response.json() };
}

/** Begins a request whose answer the test reads, or not. */
export function open(
  url: string,
  path: string,
  body: unknown,
): { request: ClientRequest; response: Promise<IncomingMessage> } {
  const request = send(`${url}${path}`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    agent: false,
  });
  const response = new Promise<IncomingMessage>((resolve, reject) => {
    request.on("response", resolve);
    request.on("error", reject);
  });
  response.catch(() => {});
  request.end(JSON.stringify(body));
  return { request, response };
}

/** A connection without HTTP, for what no client sends. */
export async function rawSocket(url: string): Promise<Socket> {
  const { hostname, port } = new URL(url);
  const socket = connect({ host: hostname, port: Number(port) } satisfies Partial<AddressInfo> & {
    host: string;
  });
  await new Promise((resolve, reject) => socket.once("connect", resolve).once("error", reject));
  socket.on("error", () => {});
  return socket;
}

/** All that a connection brings until its end. */
export async function allOf(socket: Socket): Promise<string> {
  let text = "";
  socket.on("data", (chunk) => {
    text += chunk;
  });
  if (!socket.closed) await new Promise((resolve) => socket.once("close", resolve));
  return text;
}

/** Waits until something is true. */
export async function until(holds: () => boolean, limitMs = 10_000): Promise<void> {
  const end = performance.now() + limitMs;
  while (!holds()) {
    if (performance.now() > end) throw new Error(`not true within ${limitMs} ms: ${holds}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
