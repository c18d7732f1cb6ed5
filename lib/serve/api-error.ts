import {
  ArgumentError,
  LlamaForgeError,
  NonFiniteError,
  OutOfMemoryError,
  QueueFullError,
  TokenizerError,
} from "../core/errors.js";

/** The fields of an error answer beside its message. */
export interface ErrorFacts {
  /** Field of the request that is wrong, such as `messages[2].content`. */
  param?: string;
  /** Stable name of the fault. */
  code?: string;
  headers?: Readonly<Record<string, string>>;
}

/** An error as a client sees it: a status, and OpenAI's error object. */
export class ApiError extends Error {
  readonly status: number;
  readonly facts: ErrorFacts;

  constructor(status: number, message: string, facts: ErrorFacts = {}, cause?: unknown) {
    super(message, { cause });
    this.status = status;
    this.facts = facts;
  }

  get body() {
    const { param = null, code = null } = this.facts;
    return { error: { message: this.message, type: typeOf(this.status), param, code } };
  }
}

/** The client has gone, or was cut off because it does not read. Nobody hears of this error. */
export class ClientGone extends Error {}

function typeOf(status: number): string {
  if (status === 401) return "authentication_error";
  if (status === 403) return "permission_error";
  if (status === 429) return "rate_limit_error";
  return status < 500 ? "invalid_request_error" : "server_error";
}

/** The answer to an error of the library. */
export function apiErrorOf(error: unknown): ApiError {
  if (error instanceof ApiError) return error;
  if (error instanceof QueueFullError) {
    const facts = { code: "queue_full", headers: { "retry-after": "1" } };
    return new ApiError(429, error.message, facts, error);
  }
  if (error instanceof ArgumentError) return new ApiError(400, error.message, {}, error);
  if (error instanceof TokenizerError) {
    return new ApiError(400, error.message, { code: "tokenizer" }, error);
  }
  if (error instanceof NonFiniteError || error instanceof OutOfMemoryError) {
    return new ApiError(500, error.message, { code: error.code }, error);
  }
  // Messages of bugs may name files of this machine, so clients do not see them.
  const code = error instanceof LlamaForgeError ? error.code : "internal_error";
  return new ApiError(500, "the server failed; its log has the reason", { code }, error);
}
