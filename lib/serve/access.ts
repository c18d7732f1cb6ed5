import { createHash, timingSafeEqual } from "node:crypto";
import type { IncomingMessage, ServerResponse } from "node:http";
import { isIP } from "node:net";
import { ApiError } from "./api-error.js";

/** Who may send requests: holders of keys, and web pages of some origins. */
export class Access {
  readonly #keys: readonly Buffer[];
  readonly #origins: ReadonlySet<string>;
  readonly #local: boolean;

  /** @param host the address that the server listens at */
  constructor(host: string, keys: readonly string[], origins: readonly string[]) {
    this.#keys = keys.map(digest);
    this.#origins = new Set(origins);
    this.#local = isLoopback(host);
  }

  /**
   * Lets web pages of the allowed origins read the answer.
   * @returns whether the request was a preflight, which this has answered
   */
  allowOrigin(request: IncomingMessage, response: ServerResponse): boolean {
    if (this.#origins.size === 0) return false;
    const { origin } = request.headers;
    response.setHeader("vary", "origin");
    if (origin === undefined) return false;
    if (!this.#origins.has("*") && !this.#origins.has(origin)) return false;
    response.setHeader("access-control-allow-origin", this.#origins.has("*") ? "*" : origin);
    const { method, headers } = request;
    if (method !== "OPTIONS" || !headers["access-control-request-method"]) return false;
    const wanted = headers["access-control-request-headers"] ?? "authorization, content-type";
    response.writeHead(204, {
      "access-control-allow-methods": "GET, POST",
      "access-control-allow-headers": wanted,
      "access-control-max-age": "600",
    });
    response.end();
    return true;
  }

  /**
   * Refuses a request that reached a local server by a foreign name: the page of an attacker can
   * point its own name at 127.0.0.1, and the browser then takes the answers for that page's own.
   * @throws ApiError
   */
  checkHost({ headers }: IncomingMessage): void {
    if (!this.#local || this.#keys.length > 0) return;
    const name = hostName(headers.host ?? "");
    if (isIP(name) !== 0 || name === "localhost" || name.endsWith(".localhost")) return;
    throw new ApiError(
      403,
      `expected localhost or an IP address in the header host, got ${JSON.stringify(name)}: ` +
        "set API keys to serve under another name",
      { code: "host_not_allowed" },
    );
  }

  /** @throws ApiError for a request without one of the keys */
  checkKey({ headers }: IncomingMessage): void {
    if (this.#keys.length === 0) return;
    const [, given] = /^Bearer +(.+)$/i.exec(headers.authorization ?? "") ?? [];
    const sent = digest(given ?? "");
    // Each key is compared, and in constant time, so that the time tells nothing about them.
    let known = false;
    for (const key of this.#keys) known = timingSafeEqual(key, sent) || known;
    if (given !== undefined && known) return;
    throw new ApiError(
      401,
      given === undefined
        ? "expected an API key in the header authorization: Bearer KEY"
        : "this API key is not known",
      { code: "invalid_api_key", headers: { "www-authenticate": "Bearer" } },
    );
  }
}

/** Texts of any length become equally long. */
function digest(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}

/** Whether only programs of this machine reach the address. */
export function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || /^127(\.\d+){3}$/.test(host);
}

/** The name in a `host` header, without port and brackets. */
function hostName(header: string): string {
  const [, bracketed] = /^\[([^\]]*)\](?::\d*)?$/.exec(header) ?? [];
  return (bracketed ?? header.replace(/:\d*$/, "")).toLowerCase();
}
