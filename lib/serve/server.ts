import { once } from "node:events";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { checkFunction, checkInstance, checkObject } from "../core/check.js";
import { UsageError } from "../core/errors.js";
import { checkOptionsBy } from "../core/option-problems.js";
import { Engine } from "../generate/engine.js";
import { Access } from "./access.js";
import { ApiError, apiErrorOf, ClientGone } from "./api-error.js";
import type { ServerContext } from "./context.js";
import { EventPump } from "./event-pump.js";
import { readJson } from "./json-body.js";
import { ServerMetrics } from "./metrics.js";
import { readPage } from "./page.js";
import { Reply } from "./reply.js";
import { type Route, routeOf, routesOf } from "./routes.js";
import { type ServerOptions, serverSchema } from "./schema.js";
import { TokenTexts } from "./token-texts.js";

/** Options of `serve` that are no texts or numbers. */
export interface ServeOptions extends ServerOptions {
  /** Hears of errors that are the server's own fault. Default: they are printed to the console. */
  onError?: (error: unknown) => void;
}

/** A server that listens. */
export interface RunningServer {
  /** Where it listens, such as `http://127.0.0.1:8000`. */
  readonly url: string;
  /**
   * Takes no further requests, lets answers end for up to `drainSeconds`, then cuts the rest off.
   * The engine stays open.
   */
  close(): Promise<void>;
}

/**
 * Serves an engine over HTTP as OpenAI's interface does: `/v1/completions`,
 * `/v1/chat/completions`, `/v1/models`; also `/tokenize`, `/detokenize`, `/health`, `/metrics` and
 * a chat page at `/`.
 * @throws ArgumentError for invalid options
 * @throws UsageError if the address cannot be listened at
 */
export async function serve(engine: Engine, options: ServeOptions = {}): Promise<RunningServer> {
  checkInstance("serve", "engine", engine, Engine, "an Engine");
  checkObject("serve", "options", options, "an object of options");
  const { onError = console.error, ...rest } = options;
  checkFunction("serve", "onError", onError);
  const settings = checkOptionsBy("serve", serverSchema, rest);
  const server = new EngineServer(engine, settings, onError);
  await server.listen();
  return server;
}

type Settings = ReturnType<typeof serverSchema.parse>;

class EngineServer implements RunningServer {
  readonly #engine: Engine;
  readonly #settings: Settings;
  readonly #onError: (error: unknown) => void;
  readonly #access: Access;
  readonly #http: Server;
  readonly #replies = new Set<Reply>();
  readonly #sockets = new Set<Socket>();
  #routes: readonly Route[] = [];
  #context: ServerContext | null = null;
  #closing: Promise<void> | null = null;
  url = "";

  constructor(engine: Engine, settings: Settings, onError: (error: unknown) => void) {
    this.#engine = engine;
    this.#settings = settings;
    this.#onError = onError;
    const { host, apiKeys, corsOrigins, headerSeconds, requestSeconds } = settings;
    this.#access = new Access(host, apiKeys, corsOrigins);
    const headersTimeout = Math.ceil(headerSeconds * 1000);
    const requestTimeout = Math.ceil(requestSeconds * 1000);
    this.#http = createServer(
      {
        headersTimeout: Math.min(headersTimeout, requestTimeout),
        requestTimeout,
        connectionsCheckingInterval: Math.max(50, Math.min(1000, headersTimeout / 4)),
      },
      (request, response) => {
        void this.#handle(request, response);
      },
    );
    this.#http.maxConnections = settings.maxConnections;
    this.#http.on("connection", (socket) => {
      this.#sockets.add(socket);
      socket.on("close", () => this.#sockets.delete(socket));
    });
    this.#http.on("clientError", refuseBroken);
  }

  /** @throws UsageError if the address cannot be listened at */
  async listen(): Promise<void> {
    const { host, port, modelName, maxAnswers } = this.#settings;
    this.#routes = routesOf(await readPage());
    this.#context = {
      engine: this.#engine,
      texts: new TokenTexts(this.#engine.tokenizer),
      metrics: await ServerMetrics.create(this.#engine, () => this.#sockets.size),
      pump: new EventPump(),
      modelName,
      created: Math.floor(Date.now() / 1000),
      maxAnswers,
      draining: () => this.#closing !== null,
    };
    try {
      this.#http.listen(port, host);
      await once(this.#http, "listening");
    } catch (cause) {
      this.#context.metrics.close();
      throw new UsageError(`cannot listen at ${host}:${port}: ${(cause as Error).message}`, {
        cause,
      });
    }
    const at = this.#http.address() as AddressInfo;
    this.url = `http://${host.includes(":") ? `[${host}]` : host}:${at.port}`;
  }

  close(): Promise<void> {
    this.#closing ??= this.#drain();
    return this.#closing;
  }

  async #drain(): Promise<void> {
    const closed = once(this.#http, "close");
    this.#http.close();
    this.#http.closeIdleConnections();
    // A browser opens connections before it needs them.
    for (const socket of this.#sockets) if (socket.bytesRead === 0) socket.destroy();
    const timer = setTimeout(() => {
      for (const reply of this.#replies) reply.cut(new ClientGone("the server closes"));
      this.#http.closeAllConnections();
    }, this.#settings.drainSeconds * 1000);
    await closed;
    clearTimeout(timer);
    this.#context?.metrics.close();
  }

  async #handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const context = this.#context as ServerContext;
    const startMs = performance.now();
    const reply = new Reply(response, this.#settings.stallSeconds * 1000);
    this.#replies.add(reply);
    // An unknown path is no label, since clients could make any number of them.
    let label = "other";
    try {
      if (this.#access.allowOrigin(request, response)) return;
      this.#access.checkHost(request);
      const { route, rest } = routeOf(this.#routes, request);
      label = route.path;
      if (!route.open) this.#access.checkKey(request);
      if (this.#closing) {
        response.setHeader("connection", "close");
        if (!route.open) throw new ApiError(503, "the server closes", { code: "closing" });
      }
      if ("get" in route) await route.get(context, reply, rest);
      else {
        await route.post(context, await readJson(request, this.#settings.maxBodyBytes), reply);
      }
    } catch (error) {
      await this.#fail(error, request, reply);
    } finally {
      this.#replies.delete(reply);
      if (this.#closing) this.#http.closeIdleConnections();
      const status = reply.signal.aborted ? null : response.statusCode;
      context.metrics.ended(label, status, (performance.now() - startMs) / 1000);
    }
  }

  async #fail(error: unknown, request: IncomingMessage, reply: Reply): Promise<void> {
    if (error instanceof ClientGone || reply.signal.aborted) {
      reply.response.destroy();
      return;
    }
    const answer = apiErrorOf(error);
    if (answer.status >= 500 && answer.status !== 503) this.#onError(error);
    // The rest of a request that nobody will read must not be taken for the next one.
    if (!request.complete) reply.response.setHeader("connection", "close");
    try {
      await reply.fail(answer);
    } catch (failure) {
      if (!(failure instanceof ClientGone)) this.#onError(failure);
      reply.response.destroy();
    }
  }
}

/** Answers what is no HTTP request, or one that takes too long, and ends its connection. */
function refuseBroken(error: NodeJS.ErrnoException, socket: import("node:stream").Duplex): void {
  if (error.code === "ECONNRESET" || !socket.writable) {
    socket.destroy();
    return;
  }
  const status =
    error.code === "ERR_HTTP_REQUEST_TIMEOUT"
      ? "408 Request Timeout"
      : error.code === "HPE_HEADER_OVERFLOW"
        ? "431 Request Header Fields Too Large"
        : "400 Bad Request";
  const facts = { code: "bad_request" };
  const { body } = new ApiError(Number(status.slice(0, 3)), status.slice(4), facts);
  const text = JSON.stringify(body);
  socket.end(
    `HTTP/1.1 ${status}\r\nconnection: close\r\ncontent-type: application/json\r\n` +
      `content-length: ${Buffer.byteLength(text)}\r\n\r\n${text}`,
  );
  // A client that does not close its side must not keep the connection.
  setTimeout(() => socket.destroy(), 1000).unref();
}
