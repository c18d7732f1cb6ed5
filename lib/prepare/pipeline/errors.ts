import { ArgumentError, DataError, TokenizerError } from "../../core/errors.js";

/** An error in a form that can cross threads and processes, where it would lose its class. */
export interface SentError {
  kind: "ArgumentError" | "DataError" | "TokenizerError" | "other";
  message: string;
  stack: string | undefined;
  /** Whether the file system caused it, in which case it may pass. */
  system: boolean;
}

export function sendError(error: unknown): SentError {
  const { message, stack, cause } = error as Error;
  const kind =
    error instanceof ArgumentError
      ? "ArgumentError"
      : error instanceof DataError
        ? "DataError"
        : error instanceof TokenizerError
          ? "TokenizerError"
          : "other";
  return { kind, message, stack, system: isSystemError(error) || isSystemError(cause) };
}

export function receiveError({ kind, message, stack, system }: SentError): Error {
  const options = system ? { cause: Object.assign(new Error(message), { syscall: "read" }) } : {};
  if (kind === "ArgumentError") return new ArgumentError(message, options);
  if (kind === "DataError") return new DataError(message, options);
  if (kind === "TokenizerError") return new TokenizerError(message, options);
  return Object.assign(new Error(message, options), { stack });
}

/** Whether an error comes from the file system, such as a full disk or storage that is offline. */
export function isSystemError(error: unknown): boolean {
  return typeof (error as NodeJS.ErrnoException | null | undefined)?.syscall === "string";
}
