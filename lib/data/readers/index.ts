import { stat } from "node:fs/promises";
import { ArgumentError, DataError } from "../../errors.js";
import type { InvalidUtf8 } from "../utf8.js";
import { fileReader } from "./files.js";
import { listFiles } from "./folder.js";
import { excludedFolders, languageOfExtension, languages } from "./languages.js";

/** One document: what the model sees between two end-of-text tokens. */
export interface Document {
  text: string;
  /** Size of the text in UTF-8. */
  bytes: number;
  /** Where it comes from, for messages. */
  origin: string;
}

/**
 * A source of documents, always in the same order. A reader for another format (jsonl, parquet) is another
 * function that returns one of these, chosen in `openReader`.
 */
export interface Reader {
  /** Size of what is read, if it is known before. */
  readonly totalBytes: number;
  /** Files without text, skipped so far. */
  readonly emptyFiles: number;
  documents(): AsyncIterable<Document>;
}

/** What to read. A plain string is `{ path }`. */
export interface Input {
  /** A file (one document, whatever its name), or a folder. */
  path: string;
  /** Which files of a folder: `text` for .txt and .md (default), `code` for source files by extension. */
  kind?: "text" | "code";
  /** For code, only these languages. Default: all of `languages`. */
  languages?: readonly string[];
  /** Names of folders not to enter. Default: `excludedFolders` for code, none for text. */
  exclude?: readonly string[];
}

export interface ReaderOptions {
  /** Default: "error". */
  invalidUtf8?: InvalidUtf8;
}

export const textExtensions: ReadonlySet<string> = new Set([".txt", ".md"]);

/**
 * @throws DataError if the path is missing or a folder has no file of the kind
 * @throws ArgumentError for an unknown kind or language
 */
export async function openReader(input: Input, options: ReaderOptions = {}): Promise<Reader> {
  const { path, kind = "text" } = input;
  const { invalidUtf8 = "error" } = options;
  if (kind !== "text" && kind !== "code") {
    throw new ArgumentError(
      `[prepare] expected kind "text" or "code", got ${JSON.stringify(kind)}`,
    );
  }
  const info = await stat(path).catch((cause: NodeJS.ErrnoException) => {
    throw new DataError(`[prepare] cannot read ${path}: ${cause.message}`, { cause });
  });
  if (info.isFile()) return fileReader([{ path, bytes: info.size }], invalidUtf8);
  if (!info.isDirectory()) throw new DataError(`[prepare] ${path} is neither a file nor a folder`);

  const extensions = kind === "text" ? textExtensions : codeExtensions(input.languages);
  const exclude = input.exclude ?? (kind === "code" ? [...excludedFolders] : []);
  const files = await listFiles(path, { extensions, exclude: new Set(exclude) });
  if (files.length === 0) {
    throw new DataError(
      `[prepare] ${path}: no ${kind} file in it (looked for ${[...extensions].join(" ")})` +
        (kind === "text" ? '; for source code pass kind "code"' : ""),
    );
  }
  return fileReader(files, invalidUtf8);
}

function codeExtensions(wanted: readonly string[] | undefined): ReadonlySet<string> {
  for (const language of wanted ?? []) {
    if (!languages.includes(language)) {
      throw new ArgumentError(
        `[prepare] unknown language ${JSON.stringify(language)}; known: ${languages.join(", ")}`,
      );
    }
  }
  const entries = Object.entries(languageOfExtension);
  const chosen = entries.filter(([, language]) => wanted?.includes(language) ?? true);
  return new Set(chosen.map(([extension]) => extension));
}
