import { ArgumentError, DataError, TokenizerError } from "../../core/errors.js";

/** An error on its way between threads or processes, which would lose its class. */
export interface SentError {
  kind: "ArgumentError" | "DataError" | "TokenizerError" | "other";
  message: string;
  stack: string | undefined;
  /** Whether the file system said no, which may pass. */
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

/** Whether an error comes from the file system: a full disk, storage that is away. */
export function isSystemError(error: unknown): boolean {
  return typeof (error as NodeJS.ErrnoException | null | undefined)?.syscall === "string";
}
