import type { IncomingMessage } from "node:http";
import { ApiError, ClientGone } from "./api-error.js";

/** Deepest nesting of objects and lists. The deepest request that means something has 5 levels. */
const maxDepth = 32;

const [quote, backslash, openList, closeList, openObject, closeObject] = Buffer.from('"\\[]{}');

/**
 * Reads a request's body as a JSON object.
 * @throws ApiError for another type, a body above the limit, and anything but a JSON object
 * @throws ClientGone if the client leaves before its end
 */
export async function readJson(
  request: IncomingMessage,
  maxBytes: number,
): Promise<Record<string, unknown>> {
  const { "content-type": type = "", "content-encoding": encoding = "identity" } = request.headers;
  // A page of another origin can send any other type without asking the server first.
  if (!/^application\/json\s*(;|$)/i.test(type)) {
    throw new ApiError(
      415,
      `expected the header content-type: application/json, got ${JSON.stringify(type)}`,
      { code: "unsupported_media_type" },
    );
  }
  if (encoding !== "identity") {
    throw new ApiError(415, `expected a body that is not compressed, got ${encoding}`, {
      code: "unsupported_media_type",
    });
  }
  const value = parseJson(await readBody(request, maxBytes));
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new ApiError(400, "expected a JSON object as body", { code: "invalid_json" });
  }
  return value as Record<string, unknown>;
}

async function readBody(request: IncomingMessage, maxBytes: number): Promise<Buffer> {
  const tooLarge = () =>
    new ApiError(413, `expected a body of at most ${maxBytes} bytes`, {
      code: "body_too_large",
      headers: { connection: "close" },
    });
  if (Number(request.headers["content-length"] ?? 0) > maxBytes) throw tooLarge();
  const chunks: Buffer[] = [];
  let bytes = 0;
  try {
    // Leaving the loop early must not destroy the connection, which still carries the answer.
    for await (const chunk of request.iterator({ destroyOnReturn: false })) {
      bytes += (chunk as Buffer).length;
      if (bytes > maxBytes) throw tooLarge();
      chunks.push(chunk as Buffer);
    }
  } catch (error) {
    if (error instanceof ApiError) throw error;
    throw new ClientGone("the client left before the end of its request", { cause: error });
  }
  return Buffer.concat(chunks);
}

function parseJson(body: Buffer): unknown {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(body);
  } catch (cause) {
    throw new ApiError(400, "the body is not UTF-8", { code: "invalid_json" }, cause);
  }
  if (isDeep(body)) {
    throw new ApiError(400, `expected JSON of at most ${maxDepth} levels`, {
      code: "invalid_json",
    });
  }
  try {
    return JSON.parse(text);
  } catch (cause) {
    const { message } = cause as Error;
    throw new ApiError(400, `the body is not JSON: ${message}`, { code: "invalid_json" }, cause);
  }
}

/**
 * Whether brackets outside of strings are nested too deeply. It is one pass over the bytes, since a
 * regular expression for strings takes quadratic time on some texts.
 */
function isDeep(body: Buffer): boolean {
  let depth = 0;
  let inString = false;
  for (let at = 0; at < body.length; at++) {
    const byte = body[at];
    // Bytes of longer characters are all above ASCII.
    if (inString) {
      if (byte === backslash) at++;
      else if (byte === quote) inString = false;
    } else if (byte === quote) inString = true;
    else if (byte === openList || byte === openObject) {
      if (++depth > maxDepth) return true;
    } else if (byte === closeList || byte === closeObject) depth--;
  }
  return false;
}
