import type { IncomingMessage } from "node:http";
import { ApiError } from "./api-error.js";
import { chatCompletions } from "./chat.js";
import { completions } from "./completions.js";
import { checkModel, type ServerContext } from "./context.js";
import type { ChatPage } from "./page.js";
import type { Reply } from "./reply.js";
import { detokenize, tokenize } from "./tokenize.js";

type Post = (context: ServerContext, body: Record<string, unknown>, reply: Reply) => Promise<void>;
type Get = (context: ServerContext, reply: Reply, rest: string) => Promise<void>;

/** A path with its handler, of GET requests or of POST requests with a JSON object. */
export type Route = { path: string; open?: boolean } & ({ get: Get } | { post: Post });

/** All routes. Open ones need no API key. */
export function routesOf(page: ChatPage): readonly Route[] {
  return [
    { path: "/v1/completions", post: completions },
    { path: "/v1/chat/completions", post: chatCompletions },
    { path: "/v1/models", get: models },
    { path: "/v1/models/", get: oneModel },
    { path: "/tokenize", post: tokenize },
    { path: "/detokenize", post: detokenize },
    { path: "/health", get: health, open: true },
    { path: "/metrics", get: metrics },
    {
      path: "/",
      get: async (_, reply) =>
        await reply.body(200, "text/html; charset=utf-8", page.html, page.headers),
      open: true,
    },
  ];
}

/**
 * The route of a request, and the rest of its path.
 * @throws ApiError for an unknown path, and for a method that the path does not have
 */
export function routeOf(routes: readonly Route[], { method, url = "/" }: IncomingMessage) {
  const path = url.split(/[?#]/, 1)[0] as string;
  const route = routes.find((one) =>
    one.path.length > 1 && one.path.endsWith("/")
      ? path.startsWith(one.path) && path.length > one.path.length
      : path === one.path,
  );
  if (!route) {
    const known = routes.map((one) => (one.path === "/v1/models/" ? "/v1/models/ID" : one.path));
    throw new ApiError(404, `there is no ${path.slice(0, 200)}; there are ${known.join(", ")}`, {
      code: "not_found",
    });
  }
  const allowed = "get" in route ? ["GET", "HEAD"] : ["POST"];
  if (!allowed.includes(method ?? "")) {
    throw new ApiError(405, `expected ${allowed[0]} for ${path.slice(0, 200)}, got ${method}`, {
      code: "method_not_allowed",
      headers: { allow: allowed.join(", ") },
    });
  }
  return { route, rest: path.slice(route.path.length) };
}

function modelCard({ engine, modelName, created }: ServerContext) {
  return {
    id: modelName,
    object: "model",
    created,
    owned_by: "llamaforge",
    max_model_len: engine.maxLength,
    chat: engine.chatTemplate !== null,
  };
}

async function models(context: ServerContext, reply: Reply): Promise<void> {
  await reply.json(200, { object: "list", data: [modelCard(context)] });
}

async function oneModel(context: ServerContext, reply: Reply, rest: string): Promise<void> {
  let name = rest;
  try {
    name = decodeURIComponent(rest);
  } catch {
    // A name that is no valid encoding is taken as it is, and is unknown.
  }
  checkModel(context, name);
  await reply.json(200, modelCard(context));
}

async function health({ draining }: ServerContext, reply: Reply): Promise<void> {
  if (draining()) await reply.json(503, { status: "closing" });
  else await reply.json(200, { status: "ok" });
}

async function metrics({ metrics: figures }: ServerContext, reply: Reply): Promise<void> {
  await reply.body(200, figures.contentType, await figures.text());
}
