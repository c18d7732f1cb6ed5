import { CheckpointError, UsageError } from "../core/errors.js";
import type { HubReference } from "./reference.js";

/**
 * Turns an error of `@huggingface/hub` or of the network into one that says what to do.
 * @param what start of the message: the call, such as `[downloadModel]`
 * @returns a UsageError for a model that is missing or closed, a CheckpointError for a network that fails
 */
export function explainHubError(
  error: unknown,
  what: string,
  { written, name, revision }: HubReference,
): Error {
  if (error instanceof UsageError || error instanceof CheckpointError) return error;
  if (error instanceof Error && error.name === "AbortError") return error;
  const status = (error as { statusCode?: unknown } | null)?.statusCode;
  const said = firstLine(error);
  const options = { cause: error };
  const hub = process.env.HF_ENDPOINT || "https://huggingface.co";
  const hasToken = Boolean(process.env.HF_TOKEN);
  const token = hasToken ? "the token of HF_TOKEN does not open it" : "HF_TOKEN holds no token";
  if (status === 401 || status === 403) {
    const page = `${hub}/${name}`;
    return new UsageError(
      `${what} ${written}: the Hub refuses it (${status}): there is no such model, it is private, or its license ` +
        `must be accepted first at ${page}; ${token}. The Hub says: ${said}`,
      options,
    );
  }
  if (status === 404) {
    return new UsageError(
      `${what} ${written}: the Hub has no such model or no revision ${revision} of it. The Hub says: ${said}`,
      options,
    );
  }
  if (typeof status === "number") {
    return new CheckpointError(`${what} ${written}: the Hub answers ${status}: ${said}`, options);
  }
  return new CheckpointError(
    `${what} ${written}: cannot reach ${hub}: ${said}. The same command goes on from what is there`,
    options,
  );
}

/** The innermost cause's message: `fetch failed` alone says nothing. */
function firstLine(error: unknown): string {
  let inner = error;
  while (inner instanceof Error && inner.cause instanceof Error) inner = inner.cause;
  const { message, code } = (inner ?? {}) as { message?: unknown; code?: unknown };
  const text = message || code || inner;
  return String(text).split("\n")[0]?.slice(0, 300) ?? "";
}
